"""ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from models.manifest import INPUT_NAME, OUTPUT_NAMES, Manifest
from server.engine.backends import Outputs, stack
from server.settings import Settings


class OnnxBackend:
    """A session on the first of the wanted execution providers that this installation has."""

    lanes = 1  # one batch uses all inference threads

    def __init__(self, content: bytes, settings: Settings) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = settings.inference_threads
        options.inter_op_num_threads = 1
        # Threads that spin between operators take the cores away from decoding: the largest single cost of a busy CPU.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        self._session = ort.InferenceSession(content, options, providers=list(settings.providers))

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """See `Backend.run`."""
        return Outputs(*self._session.run(OUTPUT_NAMES, {INPUT_NAME: stack(images)}))


def load(_manifest: Manifest, content: bytes, settings: Settings) -> OnnxBackend:
    """Open a session on the graph in `content`."""
    return OnnxBackend(content, settings)
