"""A network's activations on real images: one pass collects everything that quantisation needs to know of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnxruntime.quantization.calibrate import HistogramCollector

from export import console
from export.precision import Method
from models.manifest import INPUT_NAME

BATCH = 8
"""The moving average is one over batches of this size: another size would give other ranges."""
_SAMPLES = 1 << 17
"""Values sampled from each activation for percentile and entropy: 13 of them lie outside 99.99 %."""
_PERCENTILE = 99.99
_BINS = 128

Range = tuple[np.float32, np.float32]


@dataclass
class Activation:
    """One tensor of the network, over all images."""

    lowest: list[np.float32] = field(default_factory=list)
    """Smallest value of each batch."""
    highest: list[np.float32] = field(default_factory=list)
    samples: list[NDArray[np.float32]] = field(default_factory=list)
    """Values of each batch, drawn at random."""
    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros(1))
    """float64[C]: means over the pixels, added over the images."""

    def add(self, values: NDArray[np.float32], samples: int, random: np.random.Generator) -> None:
        """Add a batch, float32[N, C] or [N, C, H, W] or of any other shape."""
        self.lowest.append(values.min())
        self.highest.append(values.max())
        self.samples.append(values.reshape(-1)[random.integers(0, values.size, samples)])
        if values.ndim > 1:
            self.sums = self.sums + values.reshape(*values.shape[:2], -1).mean(2, dtype=np.float64).sum(0)

    def range(self, method: Method) -> Range:
        """Find the range to represent in 8 bits, as ONNX Runtime's calibration of the same name does."""
        match method:
            case "minmax":
                return min(self.lowest), max(self.highest)
            case "moving-average":
                return np.mean(self.lowest), np.mean(self.highest)
            case "percentile":
                outside = (1 - _PERCENTILE / 100) / 2
                low, high = np.quantile(np.concatenate(self.samples), (outside, 1 - outside))
                return np.float32(low), np.float32(high)
            case "entropy":
                collector = HistogramCollector(
                    method="entropy",
                    symmetric=False,
                    num_bins=_BINS,
                    num_quantized_bins=_BINS,
                    percentile=None,
                    scenario="same",
                )
                collector.collect({"": np.concatenate(self.samples)})
                low, high, *_ = collector.compute_collection_result()[""]
                return np.float32(low), np.float32(high)


@dataclass(frozen=True)
class Activations:
    """All tensors in floating point."""

    images: int
    tensors: Mapping[str, Activation]

    def means(self, name: str) -> NDArray[np.float64]:
        """Mean of each channel, float64[C]."""
        return self.tensors[name].sums / self.images

    def ranges(self, method: Method) -> dict[str, Range]:
        """Range of each tensor, by one method."""
        return {name: tensor.range(method) for name, tensor in self.tensors.items()}


def observe(model: onnx.ModelProto, images: NDArray[np.uint8]) -> Activations:
    """Run images through a complete graph in FP32.

    Args:
        model: must state the types of its tensors.
        images: uint8[N, H, W, 3].
    """
    names = _in_floating_point(model.graph)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    tensors = {name: Activation() for name in names}
    starts = range(0, len(images), BATCH)
    random = np.random.default_rng(0)
    for start in console.track(starts, "observe activations"):
        outputs = session.run(names, {INPUT_NAME: images[start : start + BATCH]})
        for tensor, values in zip(tensors.values(), outputs, strict=True):
            tensor.add(values, -(-_SAMPLES // len(starts)), random)
    return Activations(len(images), tensors)


def _in_floating_point(graph: onnx.GraphProto) -> Sequence[str]:
    """Name what nodes compute in FP32."""
    known = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    return [name for node in graph.node for name in node.output if known.get(name) == TensorProto.FLOAT]
