"""The complete graph: from uint8 pixels to ranked classes, in one ONNX file."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.rules import common as rules
from torch import Tensor, nn

from export import last_layer
from models.manifest import (
    INDICES_NAME,
    INPUT_NAME,
    LOGITS_NAME,
    PROBABILITIES_NAME,
    Activation,
    ChannelOrder,
    Preprocessing,
)


class _Reversed(nn.Module):
    """Turns RGB into BGR."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([2, 1, 0]))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map [N, 3, H, W] of any type to the same."""
        return pixels.index_select(1, self.order)


class _Grey(nn.Module):
    """Turns RGB into Pillow's L: ITU-R BT.601's luma, in 16-bit fractions, rounded.

    All values on the way are integers below 2**24, which float32 adds exactly in any order.
    """

    weights: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weights", torch.tensor([19595.0, 38470.0, 7471.0]).view(3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map float32[N, 3, H, W] of 0 to 255 to float32[N, 1, H, W]."""
        total = (pixels * self.weights).sum(1, keepdim=True)
        return ((total + 32768) / 65536).floor()


_CHANNELS: dict[ChannelOrder, type[nn.Module]] = {"rgb": nn.Identity, "bgr": _Reversed, "grey": _Grey}


class CompleteGraph(nn.Module):
    """A network with channels, normalisation and layout change before it, activation and ranking after it."""

    scale: Tensor
    shift: Tensor

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, top_k: int, activation: Activation = "softmax"
    ) -> None:
        super().__init__()
        self.network = network
        self.channels = _CHANNELS[preprocessing.channels]()
        self.top_k = top_k
        self.activation = activation
        mean = torch.tensor(preprocessing.mean, dtype=torch.float64).view(-1, 1, 1)
        std = torch.tensor(preprocessing.std, dtype=torch.float64).view(-1, 1, 1)
        # (pixel / 255 - mean) / std as one multiplication and one addition, rounded to float32 once.
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classify RGB images uint8[N, H, W, 3].

        Returns:
            probabilities float32[N, top_k], largest first, their classes int32[N, top_k], and logits
            float32[N, num_classes].
        """
        pixels = images.float().permute(0, 3, 1, 2)  # in this order: TensorRT transposes no uint8
        logits: Tensor = self.network(self.channels(pixels) * self.scale + self.shift)
        indices = logits.topk(self.top_k).indices
        probabilities = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)
        return probabilities.gather(1, indices), indices.int(), logits


def to_onnx(graph: CompleteGraph, crop: tuple[int, int], opset: int) -> bytes:
    """Export a graph for images of the height and width `crop`, with a free batch size; check it against ONNX's rules.

    The file holds no trace of the machine it was made on (the exporter records source files and lines), so that the
    same weights and tools give the same bytes.
    """
    return finish(trace(graph, crop, opset))


def trace(graph: CompleteGraph, crop: tuple[int, int], opset: int) -> onnx_ir.Model:
    """Export a graph with a free batch size; the exporter's result is not yet tidied."""
    # Two images, not one: the exporter takes a dimension of one for a constant.
    example = torch.zeros(2, *crop, 3, dtype=torch.uint8)
    with silenced():
        # Batch norm is folded before the export, whose time grows with the square of the number of parameters.
        program: torch.onnx.ONNXProgram = torch.onnx.export(  # type: ignore[assignment] # None is for dynamo=False
            fold_batch_norm(graph),
            (example,),
            dynamo=True,
            dynamic_shapes={INPUT_NAME: {0: torch.export.Dim("N")}},
            input_names=[INPUT_NAME],
            output_names=[PROBABILITIES_NAME, INDICES_NAME, LOGITS_NAME],
            opset_version=opset,
            external_data=False,
            verbose=False,
            optimize=False,
        )
    return program.model


def finish(model: onnx_ir.Model) -> bytes:
    """Tidy a complete graph and check it against ONNX's rules; the same graph gives the same bytes."""
    _optimize(model)
    last_layer.answer_more(model)
    passes.NameFixPass()(model)
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold batch norm into the convolutions before it, in a copy.

    A network whose code cannot be traced, like some of other libraries, is returned unchanged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own imports warn
        from torch.fx.experimental.optimization import fuse

        try:
            return fuse(network)
        except Exception:  # the network's code may do anything with the proxies that stand for tensors
            return network


_RULES = (
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.normalize_pad_format_conv_rule,
    rules.fuse_pad_into_conv_rule,
    rules.fuse_batchnorm_into_conv_rule,
)


def _optimize(model: onnx_ir.Model) -> None:
    """Tidy a graph as the exporter's own optimizer does, with only those of its rules that apply to our networks.

    One of the others, `slice_split_rule`, takes time quadratic in the number of nodes: a quarter of the whole export of
    1202 layers.
    """
    for _ in range(2):  # a folded padding makes room for a batch norm
        fold_constants(model)
        rewrite(model, _RULES)
    for tidy in (
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(),
        passes.CommonSubexpressionEliminationPass(),
        passes.IdentityEliminationPass(),
        passes.ClearMetadataAndDocStringPass(),
    ):
        tidy(model)


@contextmanager
def silenced() -> Iterator[None]:
    """Hide from our users what the exporter logs for its developers (missing torchvision, its own deprecated calls)."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
