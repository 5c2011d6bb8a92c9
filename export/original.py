"""What an ONNX file answers as it is, in ONNX Runtime: what its scores are, and what its complete graph must answer."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
import onnx
import onnx_ir
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import Tensor

from export.comparison import probabilities
from export.onnx_file import OnnxFile, OnnxFileError, first_line
from models.manifest import INPUT_NAME, Activation
from server.cpus import available_cpus

Scores = Literal["logits", "probabilities"]

_NEW_OPSET = 20
_FP16, _FP32 = float(np.finfo(np.float16).tiny), float(np.finfo(np.float32).tiny)
SMALLEST: "Mapping[np.dtype[np.generic], float]" = {
    np.dtype(np.float16): _FP16,
    np.dtype(np.float32): _FP32,
    np.dtype(np.float64): _FP32,
}
"""By type of the scores, the least probability that a logit is made of: smaller ones lose their digits in FP32."""
_ROUNDING = {"fp32": 1e-4, "fp16": 1e-2, "int8": 2e-2}
"""By precision, how far probabilities may be from what they are computed from, or their sum from 1."""


class Taken(NamedTuple):
    """What is taken from a file."""

    scores: Scores
    activation: Activation
    """That makes probabilities of logits."""
    shape: tuple[int, ...]
    """For one image; one of the numbers is that of the classes, the others are 1."""
    kind: "np.dtype[np.generic]"


class Meaning(NamedTuple):
    """What the scores of a file are."""

    taken: Taken
    inner: str | None
    """The value that it is taken from, logits that the scores are computed from; None: the scores."""
    num_classes: int

    @property
    def activation(self) -> Activation:
        """That makes probabilities of logits."""
        return self.taken.activation


class Original:
    """The file in ONNX Runtime on the CPU, asked one batch of normalised images at a time."""

    def __init__(self, file: OnnxFile) -> None:
        """Open a session.

        Raises:
            OnnxFileError: ONNX Runtime does not run the file.
        """
        self.file = file
        self.batch = file.batch
        """How many images it takes at a time, no more and no less; None: any number."""
        self.names = [str(file.output.name)]
        proto = onnx.load_model_from_string(file.content) if file.whole else onnx_ir.to_proto(file.model)
        node = file.activation
        inner = node.inputs[0].name if node is not None and node.inputs[0] is not None else None
        if any(inner in other.output for other in proto.graph.node):  # not inside of a function
            self.names.append(str(inner))
        del proto.graph.output[:]
        proto.graph.output.extend(map(helper.make_empty_tensor_value_info, self.names))
        try:
            self._session = _session(proto.SerializeToString())
        except Exception as failure:  # its errors have no common class
            raise _refused(file, failure) from failure

    def run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.generic]]:
        """Compute the scores, and what their activation is computed from, of normalised float32[N, C, H, W].

        Where the batch is frozen, images are asked in batches of that size, the last filled up with its last image.
        """
        size = self.batch or len(pixels)
        answers = [self._run(pixels[start : start + size], size) for start in range(0, len(pixels), size)]
        return [np.concatenate(parts) for parts in zip(*answers, strict=True)]

    def _run(self, pixels: NDArray[np.float32], size: int) -> list[NDArray[np.generic]]:
        filled = np.concatenate([pixels, np.repeat(pixels[-1:], size - len(pixels), axis=0)])
        if self.file.layout == "nhwc":
            filled = filled.transpose(0, 2, 3, 1)
        if self.file.kind == np.uint8:
            filled = np.rint(filled)
        feed = {self.file.input.name: np.ascontiguousarray(filled.astype(self.file.kind))}
        outputs: list[NDArray[np.generic]] = self._session.run(self.names, feed)
        if any(output.ndim == 0 or len(output) != size for output in outputs):
            raise OnnxFileError(f"{self.file.path} has no answer for each of {size} images")
        return [output[: len(pixels)] for output in outputs]

    def probe(self, pixels: NDArray[np.float32]) -> list[NDArray[np.generic]]:
        """Ask several images together, and find out whether that may be done.

        Raises:
            OnnxFileError: it cannot be run, or its answers depend on more than the image.
        """
        answers = self._probe(pixels)
        if not np.isfinite(answers[0]).all():
            raise OnnxFileError(
                f"{self.file.path} answers NaN or infinity: its parameters are damaged, or mean and std are wrong"
            )
        again = self.run(pixels[:1])[0]
        if not np.allclose(again, answers[0][:1], rtol=1e-2, atol=1e-2 * float(np.abs(again).max())):
            raise OnnxFileError(
                f"{self.file.path} does not answer an image alike alone and beside others: it was exported in training"
                " mode; export it once more after model.eval()"
            )
        return answers

    def _probe(self, pixels: NDArray[np.float32]) -> list[NDArray[np.generic]]:
        try:
            return self.run(pixels)
        except Exception as failure:  # its errors have no common class
            if self.batch is not None:
                raise _refused(self.file, failure) from failure
        try:
            self.batch = 1  # free at the door, and frozen inside
            return self.run(pixels)
        except Exception as failure:
            raise _refused(self.file, failure) from failure

    def meaning(self, pixels: NDArray[np.float32], activation: Activation | None, scores: Scores | None) -> Meaning:
        """Tell what the scores are.

        Args:
            pixels: what to ask, normalised float32[N, C, H, W].
            activation: as it was stated.
            scores: as they were stated.

        Raises:
            OnnxFileError: they are no scores, or others than was stated, or may be of either kind.
        """
        given, *before = self.probe(pixels)
        path, node = self.file.path, self.file.activation
        if given[0].size != max(given.shape[1:], default=0):
            raise OnnxFileError(f"{path} gives {given.shape[1:]} for an image, not one score for each class")
        count = given[0].size
        flat = given.reshape(-1, count).astype(np.float64)
        rounding = _ROUNDING[self.file.precision]

        def taken(kind: Activation, what: Scores, inner: str | None, values: NDArray[np.generic]) -> Meaning:
            if activation not in (None, kind):
                raise OnnxFileError(f"{path} ends in a {kind}: --activation {activation} is not what it was made for")
            return Meaning(Taken(what, kind, values.shape[1:], values.dtype), inner, count)

        if node is not None and scores != "logits" and before and before[0].size == given.size:
            kind: Activation = "softmax" if node.op_type == "Softmax" else "sigmoid"
            if np.abs(probabilities(before[0].reshape(flat.shape).astype(np.float32), kind) - flat).max() <= rounding:
                return taken(kind, "logits", self.names[1], before[0])
        within = bool((flat >= -rounding).all() and (flat <= 1 + rounding).all())
        if scores is None and within and count > 1 and np.abs(flat.sum(1) - 1).max() <= rounding:
            return taken("softmax", "probabilities", None, given)
        if scores is None and within:
            raise OnnxFileError(
                f"the scores of {path} lie between 0 and 1 and do not add up to 1: say whether they are --scores"
                " probabilities, each of a class by itself, or --scores logits"
            )
        if (count, activation) == (1, "softmax"):
            raise OnnxFileError(f"{path} has one class, whose softmax is always 1: leave out --activation softmax")
        otherwise: Activation = "sigmoid" if count == 1 or scores == "probabilities" else "softmax"
        return Meaning(Taken(scores or "logits", activation or otherwise, given.shape[1:], given.dtype), None, count)

    def logits(self, pixels: Tensor, meaning: Meaning) -> Tensor:
        """Compute logits float32[N, num_classes] of normalised float32[N, C, H, W], of probabilities if need be."""
        given, *before = self.run(pixels.numpy())
        values = (before[0] if meaning.inner else given).reshape(len(pixels), -1)
        if meaning.taken.scores == "probabilities":
            smallest = SMALLEST[meaning.taken.kind]
            values = values.astype(np.float64).clip(smallest, 1)
            others = np.float64(1) if meaning.activation == "softmax" else (1 - values).clip(smallest, 1)
            values = np.log(values) - np.log(others)
        return torch.from_numpy(values.astype(np.float32))


def fails(content: bytes, images: NDArray[np.uint8]) -> str | None:
    """Say why a complete graph does not run on uint8[N, H, W, 3]; None: it does."""
    try:
        _session(content).run(None, {INPUT_NAME: images})
    except Exception as failure:  # its errors have no common class
        return first_line(failure)
    return None


def _session(content: bytes) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails here is said once, by who asked for it
    options.intra_op_num_threads = available_cpus()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _refused(file: OnnxFile, failure: Exception) -> OnnxFileError:
    if isinstance(failure, OnnxFileError):
        return failure
    foreign = sorted(
        {f"{node.domain}::{node.op_type}" for node in file.model.graph if node.domain not in ("", "com.microsoft")}
    )
    text = first_line(failure)
    if foreign:
        reason = f"has operators of its own, {', '.join(foreign)}: export it with none but ONNX's"
    elif file.opset > _NEW_OPSET and "opset" in text.lower():
        reason = f"has opset {file.opset}, newer than ONNX Runtime {ort.__version__} knows: export it with opset 20"
    else:
        reason = f"does not run in ONNX Runtime {ort.__version__}: {text}"
    return OnnxFileError(f"{file.path} {reason}")
