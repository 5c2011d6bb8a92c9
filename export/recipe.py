"""What to export: a network of the zoo, its parameters and its classes, decided before torch is even imported."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from export.options import NOTHING, Stated
from models import foreign, labels, weights, zoo
from models.architectures import ARCHITECTURES, Shortcut, StrideIn
from models.errors import ExpectedError
from models.manifest import MAX_TOP_K, Accuracy, Activation, Label, Preprocessing, Weights
from models.part import Part

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
RANDOM_SEED = 0
TOOLS = {package: metadata.version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime")}
_OUR_SOURCES = (
    "models/architectures.py",
    "models/resnet.py",
    "models/networks.py",
    "models/checkpoint.py",
    "export/graph.py",
)


class RecipeError(ExpectedError):
    """The things asked for do not go together."""


@dataclass(frozen=True)
class Recipe:
    """One network with its parameters and classes, to be exported."""

    pretrained: zoo.Pretrained
    shortcut: Shortcut | None
    """None: the architecture's own."""
    stride_in: StrideIn | None
    """None: the architecture's own."""
    checkpoint: Path | None
    """A file of the user's instead of the zoo's weights."""
    part: Part
    """Of the user's file."""
    random: bool
    """No trained parameters at all."""
    labels: tuple[Label, ...]
    preprocessing: Preprocessing
    activation: Activation

    @property
    def num_classes(self) -> int:
        """Each class has a label."""
        return len(self.labels)

    @property
    def top_k(self) -> int:
        """How many classes the graph ranks."""
        return min(MAX_TOP_K, self.num_classes)

    @property
    def architecture(self) -> str:
        """The architecture in words, for the manifest."""
        changes = [f"shortcuts {self.shortcut}"] if self.shortcut else []
        changes += [f"stride in the {self.stride_in}"] if self.stride_in else []
        return " with ".join([self.pretrained.architecture, *filter(None, [" and ".join(changes)])])

    @property
    def published_accuracy(self) -> Accuracy | None:
        """The accuracy published for the zoo's weights; nothing is known of other parameters, or other pixels."""
        other = self.random or self.checkpoint or self.preprocessing != self.pretrained.preprocessing
        return None if other else self.pretrained.accuracy

    def fingerprint(self) -> str:
        """Digest all that determines the exported file. Nothing is fetched: the zoo's weights are known by name."""
        if self.random:
            parameters = f"random {RANDOM_SEED}"
        elif self.checkpoint:
            parameters = weights.sha256_of(self.checkpoint) + str(self.part)
        else:
            parameters = repr(self.pretrained.weights)
        root = Path(__file__).parents[1]
        ingredients = {
            "architecture": self.architecture,
            "parameters": parameters,
            "preprocessing": self.preprocessing.model_dump(),
            "activation": self.activation,
            "labels": [label.model_dump() for label in self.labels],
            "top_k": self.top_k,
            "opset": OPSET,
            "tools": TOOLS,
            "sources": [weights.sha256_of(root / name) for name in _OUR_SOURCES],
        }
        return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()

    def obtain_weights(self, folder: Path) -> Path | None:
        """Return the file with the parameters, downloaded into `folder` where needed; None for random ones.

        Raises:
            WeightsError: it is not to be had.
        """
        if self.random or self.pretrained.weights is None:
            return self.checkpoint
        return self.checkpoint or weights.obtain(self.pretrained.weights, folder)

    def build(self, weights_file: Path | None) -> "nn.Module":
        """Build the network in evaluation mode, with the parameters of `weights_file` or random ones.

        Raises:
            CheckpointError: the file is not of this network.
            RecipeError: it has another number of classes than there are labels, or sees other channels.
        """
        from models import checkpoint, networks  # these import torch, which takes seconds

        state = None if weights_file is None else checkpoint.read(weights_file, **asdict(self.part))
        num_classes = self.num_classes if state is None else checkpoint.num_classes(state)
        if num_classes not in (None, self.num_classes):
            raise RecipeError(
                f"{weights_file} has {num_classes} classes, but there are {self.num_classes} labels:"
                f" give its own with --labels FILE, or number them with --num-classes {num_classes}"
            )
        network = networks.build(
            self.pretrained.architecture, self.num_classes, self.shortcut, RANDOM_SEED, stride_in=self.stride_in
        )
        grey, first = self.preprocessing.channels == "grey", (state or {}).get(networks.first_weight(network))
        trained_grey = first is not None and first.shape[1] == 1
        if trained_grey and not grey:
            raise RecipeError(f"{weights_file} sees one channel: give --channels grey, with its --mean and --std")
        if trained_grey:
            networks.see_grey(network)
        if state is not None:
            checkpoint.load(network, state, str(weights_file))
        if grey and not trained_grey:
            networks.see_grey(network)
        return network

    def describe_weights(self, weights_file: Path | None) -> Weights:
        """Say in the manifest where the parameters came from."""
        if weights_file is None:
            return Weights(source=f"random, seed {RANDOM_SEED}", sha256=None, random=True)
        official = self.checkpoint is None and isinstance(self.pretrained.weights, zoo.OfficialWeights)
        source = weights.OFFICIAL_URL + weights_file.name if official else weights_file.name
        return Weights(source=source + str(self.part), sha256=weights.sha256_of(weights_file))


def plan(
    name: str,
    *,
    checkpoint: Path | None = None,
    random: bool = False,
    num_classes: int | None = None,
    labels_file: Path | None = None,
    shortcut: Shortcut | None = None,
    stride_in: StrideIn | None = None,
    averaged: bool = False,
    key: str | None = None,
    prefix: str | None = None,
    head: str | None = None,
    stated: Stated = NOTHING,
) -> Recipe:
    """Decide what to export.

    Raises:
        RecipeError: there is no such network, it has no weights, or labels and classes differ in number.
        StatedError: what is stated of the preprocessing does not go together.
        LabelsError: the labels file is none.
    """
    pretrained = zoo.NETWORKS.get(name)
    if pretrained is None:
        raise RecipeError(f"there is no network {name}; there are {', '.join(zoo.NETWORKS)}")
    residual = ARCHITECTURES.get(pretrained.architecture)
    if shortcut and (residual is None or residual.style == "plain"):
        raise RecipeError(f"{name} has no shortcuts to choose")
    if stride_in and (residual is None or residual.block != "bottleneck"):
        raise RecipeError(f"{name} has no bottlenecks to choose the stride of")
    part = Part(averaged, key, prefix, head)
    if part.is_chosen and not checkpoint:
        raise RecipeError(
            "--ema, --key, --prefix and --head choose from your own checkpoint: give it with --weights FILE"
        )
    if checkpoint:
        _check_kind(checkpoint)
    if pretrained.weights is None and not checkpoint and not random:
        raise RecipeError(
            f"{name} has no published weights: give your own with --weights FILE,"
            f" or export an untrained network with --random-weights"
        )
    if num_classes is not None and num_classes < 1:
        raise RecipeError(f"{num_classes} classes are none to choose from")
    if labels_file:
        classes = labels.read(labels_file)
        if num_classes not in (None, len(classes)):
            raise RecipeError(f"{labels_file} has {len(classes)} labels, not {num_classes}: give one for each class")
    else:
        classes = pretrained.labels()
        if num_classes is not None and (checkpoint or num_classes != len(classes)):
            classes = labels.numbered(num_classes)  # one's own are not a data set's, though they be as many
    activation = stated.activation or "softmax"
    if len(classes) == 1 and activation == "softmax":
        raise RecipeError("softmax of one class is always 1: give --activation sigmoid for its probability")
    preprocessing = stated.over(pretrained.customary if checkpoint else pretrained.preprocessing)
    return Recipe(pretrained, shortcut, stride_in, checkpoint, part, random, classes, preprocessing, activation)


def _check_kind(checkpoint: Path) -> None:
    """Tell at once of a file that is no checkpoint."""
    try:
        if what := foreign.file(checkpoint):
            raise RecipeError(f"{checkpoint} {what}")
    except FileNotFoundError as error:
        raise RecipeError(f"{checkpoint}: there is no such file") from error
