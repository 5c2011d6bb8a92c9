"""The work that all rivals do, as users would write it: Pillow, NumPy and ONNX Runtime. Only the framework differs.

`COMPARE_WORK` in the environment says what to do, as JSON: `network` (path of an ONNX file), `tuned`, and the
manifest's preprocessing. This imports nothing else of ours, since it runs in the rivals' virtual environments.

As a command, it prints the answers to the photos whose paths it is given: the reference for all servers.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

VARIABLE = "COMPARE_WORK"
TOP_K = 5
MAX_BATCH = 8
MAX_WAIT_MS = 5
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

Logits = NDArray[np.float32]

_work = json.loads(os.environ[VARIABLE])
_filter = Image.Resampling[_work["interpolation"].upper()]
_mean = np.array(_work["mean"], np.float32)
_std = np.array(_work["std"], np.float32)


def pixels(photo: bytes) -> NDArray[np.float32]:
    """float32[3, H, W]: resize the short side, crop the centre, normalise."""
    with Image.open(io.BytesIO(photo)) as image:
        return pixels_of(image)


def pixels_of(image: Image.Image) -> NDArray[np.float32]:
    """As `pixels`, for an image that the framework has opened already."""
    resize, (height, width) = _work["resize"], _work["crop"]
    rgb = image.convert("RGB")
    short = min(rgb.size)
    rgb = rgb.resize((rgb.width * resize // short, rgb.height * resize // short), _filter)
    left, top = round((rgb.width - width) / 2), round((rgb.height - height) / 2)
    scaled = np.asarray(rgb.crop((left, top, left + width, top + height)), np.float32) / np.float32(255)
    normalised: NDArray[np.float32] = ((scaled - _mean) / _std).transpose(2, 0, 1)
    return normalised


class Network:
    """An ONNX Runtime session with a thread for each CPU; tuned: threads that do not spin."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = CPUS
        if _work["tuned"]:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(_work["network"], options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: NDArray[np.float32]) -> Logits:
        """float32[N, 3, H, W] to float32[N, classes]."""
        logits: Logits = self._session.run(None, {self._input: batch})[0]
        return logits


def top_k(logits: Logits) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The best classes of each image and their probabilities, both [N, TOP_K], the most probable first."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    best = np.argsort(-probabilities, axis=1)[:, :TOP_K]
    return best, np.take_along_axis(probabilities, best, axis=1)


def answers(logits: Logits) -> list[dict[str, Any]]:
    """The answer to the client for each image."""
    pairs = zip(*(array.tolist() for array in top_k(logits)), strict=True)
    return [{"classes": classes, "probabilities": probabilities} for classes, probabilities in pairs]


def main() -> None:
    """Print the answer to each photo, one a line."""
    network = Network()
    for path in sys.argv[1:]:
        print(json.dumps(answers(network(pixels(Path(path).read_bytes())[np.newaxis]))[0]))


if __name__ == "__main__":
    main()
