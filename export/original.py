"""Runs an unchanged ONNX file in ONNX Runtime: what its scores are, and what its complete graph must answer."""

import re
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
from export.onnx_file import OnnxFile, OnnxFileError
from models.errors import first_line
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
"""By type of the scores: smallest probability to compute a logit from; smaller ones lose their digits in FP32."""
_ROUNDING = {"fp32": 1e-4, "fp16": 1e-2, "int8": 2e-2}
"""By precision: how far probabilities may be from those computed from the logits, or their sum from 1."""


class Taken(NamedTuple):
    """The values that are taken from a file."""

    scores: Scores
    activation: Activation
    """Turns logits into probabilities."""
    shape: tuple[int, ...]
    """For one image: the number of classes along one axis, 1 along the others."""
    kind: "np.dtype[np.generic]"


class Meaning(NamedTuple):
    """What the scores of a file are."""

    taken: Taken
    inner: str | None
    """Name of the value to take: the logits that the scores are computed from; None: the scores themselves."""
    num_classes: int

    @property
    def activation(self) -> Activation:
        """Turns logits into probabilities."""
        return self.taken.activation


class Original:
    """The file in ONNX Runtime on the CPU; it takes batches of normalised images."""

    def __init__(self, file: OnnxFile) -> None:
        """Open a session.

        Raises:
            OnnxFileError: ONNX Runtime does not run the file.
        """
        self.file = file
        self.batch = file.batch
        """Number of images that every batch must have; None: any number."""
        self.names = [str(file.output.name)]
        proto = onnx.load_model_from_string(file.content) if file.whole else onnx_ir.to_proto(file.model)
        node = file.activation
        inner = node.inputs[0].name if node is not None and node.inputs[0] is not None else None
        if any(inner in other.output for other in proto.graph.node):  # not inside a function
            self.names.append(str(inner))
        for value in proto.graph.input:
            for size in value.type.tensor_type.shape.dim:
                if size.dim_value < 1:  # free, as some exporters write it
                    size.Clear()
        del proto.graph.output[:]
        proto.graph.output.extend(map(helper.make_empty_tensor_value_info, self.names))
        try:
            self._session = _session(proto.SerializeToString())
        except Exception as failure:  # its errors have no common class
            raise _refused(file, failure) from failure

    def run(self, pixels: NDArray[np.float32]) -> list[NDArray[np.generic]]:
        """Compute the scores, and the input of their activation, for normalised float32[N, C, H, W].

        With a fixed batch size, images run in batches of that size; copies of the last image fill up the last batch.
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
        """Run several images as one batch, and check that each answer depends on its image alone.

        Raises:
            OnnxFileError: the file cannot be run, or answers depend on more than the image.
        """
        answers = self._probe(pixels)
        if not np.isfinite(answers[0]).all():
            raise OnnxFileError(
                f"{self.file.path} answers NaN or infinity: its parameters are damaged, or mean and std are wrong"
            )
        again = self.run(pixels[:1])[0]
        if not np.allclose(again, answers[0][:1], rtol=1e-2, atol=1e-2 * float(np.abs(again).max())):
            raise OnnxFileError(
                f"{self.file.path} answers an image differently alone and beside others: it was exported in training"
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
            self.batch = 1  # the batch size of the input is free, but fixed inside
            return self.run(pixels)
        except Exception as failure:
            raise _refused(self.file, failure) from failure

    def meaning(self, pixels: NDArray[np.float32], activation: Activation | None, scores: Scores | None) -> Meaning:
        """Find out what the scores are.

        Args:
            pixels: images to try, normalised float32[N, C, H, W].
            activation: as stated by the user; None: to be found out.
            scores: as stated by the user; None: to be found out.

        Raises:
            OnnxFileError: the values are not scores, are not as stated, or may be of either kind.
        """
        given, *before = self.probe(pixels)
        path, node = self.file.path, self.file.activation
        if given[0].size != max(given.shape[1:], default=1):
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
            if (count, kind) == (1, "softmax"):
                raise OnnxFileError(
                    f"{path} ends in a softmax of one class, which is always 1: name the value before it with --output"
                )
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
        """Compute logits float32[N, num_classes] of normalised float32[N, C, H, W], if need be from probabilities."""
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
    options.log_severity_level = 4  # the caller reports a failure
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
        reason = f"has custom operators, {', '.join(foreign)}: export it with standard ONNX operators only"
    elif newest := re.search(r"max supported IR version: (\d+)", str(failure)):
        reason = (
            f"has a newer IR version than ONNX Runtime {ort.__version__} knows: write it with an older onnx package, or"
            f" onnx.save it with ir_version {newest[1]}"
        )
    elif file.opset > _NEW_OPSET and "opset" in text.lower():
        reason = f"has opset {file.opset}, newer than ONNX Runtime {ort.__version__} knows: export it with opset 20"
    else:
        reason = f"does not run in ONNX Runtime {ort.__version__}: {text}"
    return OnnxFileError(f"{file.path} {reason}")
