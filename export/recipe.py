"""What to export: a network, its parameters, classes and preprocessing; decided before torch is imported.

A source is a name of the zoo, or a published model: a repository of the hub or a folder with the same files.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from export import repository
from export.expect import Expected
from export.options import NOTHING, Stated
from export.parameters import RANDOM_SEED, Checkpoint, OfTheZoo, Parameters, PublishedFile, Random
from models import foreign, hints, hub, labels, published, shards, weights, zoo
from models.architectures import ARCHITECTURES, Architecture, Shortcut, StrideIn
from models.config import Network, Ours, Published, Timm, Transformers, UnknownPreprocessingError
from models.errors import ExpectedError
from models.manifest import MAX_TOP_K, Accuracy, Activation, Label, Preprocessing, Weights
from models.part import Part

if TYPE_CHECKING:
    from torch import nn

OPSET = 20
_MOST_CLASSES = 1_000_000
TOOLS = {package: metadata.version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime")}
_OUR_SOURCES = (
    "models/architectures.py",
    "models/resnet.py",
    "models/networks.py",
    "models/libraries.py",
    "models/names.py",
    "models/checkpoint.py",
    "models/reparametrized.py",
    "export/graph.py",
    "export/last_layer.py",
)


class RecipeError(ExpectedError):
    """The request is contradictory, or lacks something."""


@dataclass(frozen=True)
class Recipe:
    """One network with its parameters and classes, to be exported."""

    name: str
    """Default name in the model repository."""
    network: Network
    parameters: Parameters
    labels: tuple[Label, ...]
    preprocessing: Preprocessing
    activation: Activation
    published_accuracy: Accuracy | None
    """Published for exactly these parameters and this preprocessing; None: nothing was."""
    expected: Expected | None = None
    """Logits of the user's own model that the export must reproduce."""
    notes: tuple[str, ...] = ()
    """Assumptions to print, one line each."""

    @property
    def num_classes(self) -> int:
        """Number of classes, each of which has a label."""
        return len(self.labels)

    @property
    def top_k(self) -> int:
        """How many classes the graph ranks."""
        return min(MAX_TOP_K, self.num_classes)

    @property
    def architecture(self) -> str:
        """The architecture in words, for the manifest."""
        match self.network:
            case Ours():
                return self.network.name
            case Timm():
                return f"{self.network.name} of timm"
            case Transformers():
                return f"{self.network.name} of transformers"
            case _:
                assert_never(self.network)

    @property
    def tools(self) -> Mapping[str, str]:
        """Versions of the packages that make the file."""
        match self.network:
            case Ours():
                return TOOLS
            case Timm():
                return TOOLS | _version_of("timm")
            case Transformers():
                return TOOLS | _version_of("transformers")
            case _:
                assert_never(self.network)

    def fingerprint(self) -> str:
        """Digest everything that determines the exported file and what it is compared with. Downloads nothing."""
        root = Path(__file__).parents[1]
        ingredients: dict[str, object] = {
            "architecture": self.architecture,
            "parameters": self.parameters.identity(),
            "preprocessing": self.preprocessing.model_dump(),
            "activation": self.activation,
            "labels": [label.model_dump() for label in self.labels],
            "top_k": self.top_k,
            "opset": OPSET,
            "tools": dict(self.tools),
            "sources": [weights.sha256_of(root / name) for name in _OUR_SOURCES],
        }
        match self.network:
            case Timm():
                ingredients["arguments"] = repr(sorted(self.network.arguments.items()))
            case Transformers():
                ingredients["config"] = weights.sha256_of(self.network.config)
        if self.expected:
            ingredients["expected"] = self.expected.digest()
        return repository.digest(ingredients)

    def obtain_weights(self, folder: Path) -> Path | None:
        """Return the file with the parameters, downloaded if needed (the zoo's into `folder`); None for random ones.

        Raises:
            WeightsError, SourceError: the file cannot be obtained.
        """
        return self.parameters.obtain(folder)

    def build(self, weights_file: Path | None) -> "nn.Module":
        """Build the network in evaluation mode, with the parameters of `weights_file` or random ones.

        Raises:
            CheckpointError: the file does not fit this network.
            LibraryError: the library that defines the network is not installed.
            RecipeError: the file's classes do not match the labels in number, or its channels the preprocessing.
        """
        from models import checkpoint, libraries, networks  # these import torch, which takes seconds

        if not isinstance(self.network, Ours):
            if weights_file is None:
                raise RecipeError(f"{self.architecture} cannot be built without its parameters")
            named = checkpoint.read_as_named(weights_file)
            return libraries.build(self.network, self.num_classes, named, weights_file.name)
        part = self.parameters.part if isinstance(self.parameters, Checkpoint) else Part()
        state = None if weights_file is None else checkpoint.read(weights_file, **asdict(part))
        num_classes = self.num_classes if state is None else checkpoint.num_classes(state)
        if num_classes not in (None, self.num_classes):
            raise RecipeError(
                f"{weights_file} has {num_classes} classes, but there are {self.num_classes} labels:"
                f" give its own with --labels FILE, or number them with --num-classes {num_classes}"
            )
        network = networks.build(self.network.architecture, self.num_classes, seed=RANDOM_SEED)
        grey, first = self.preprocessing.channels == "grey", (state or {}).get(networks.first_weight(network))
        channels = first.shape[1] if first is not None and first.ndim == 4 else None
        if channels not in (None, 1, 3):
            raise RecipeError(f"{weights_file} takes {channels} channels: an image has 3, or 1 where it is grey")
        trained_grey = channels == 1
        if trained_grey and not grey:
            raise RecipeError(f"{weights_file} takes one channel: give --channels grey, with its --mean and --std")
        if trained_grey:
            networks.see_grey(network)
        if state is not None:
            checkpoint.load(network, state, str(weights_file))
        if grey and not trained_grey:
            networks.see_grey(network)
        return network

    def doubt(self, network: "nn.Module") -> str:
        """Warn that the user's checkpoint fits other networks as well; "" if it does not."""
        from models import names

        if not (isinstance(self.parameters, Checkpoint) and isinstance(self.network, Ours)) or self.expected:
            return ""
        fitting = names.recognise(network.state_dict())
        others = " and ".join(name for name in fitting if ARCHITECTURES[name] != self.network.architecture)
        return others and (
            f"{self.parameters.path} fits {others} as well as {self.architecture}, and does not say which was trained:"
            " --expect proves it (docs/reference/networks.md)"
        )

    def describe_weights(self, weights_file: Path | None) -> Weights:
        """Describe the origin of the parameters, for the manifest."""
        if isinstance(self.parameters, Random) or weights_file is None:
            return Random().describe()
        return self.parameters.describe(weights_file)


def _version_of(library: str) -> dict[str, str]:
    try:
        return {library: metadata.version(library)}
    except metadata.PackageNotFoundError:  # `build` reports it
        return {}


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
    allow_pickle: bool = False,
    stated: Stated = NOTHING,
    expected: Expected | None = None,
) -> Recipe:
    """Decide what to export.

    Raises:
        RecipeError: there is no such network, it has no weights, or labels and classes differ in number.
        SourceError: a repository or folder cannot be read, or is not an image classifier.
        StatedError: the stated preprocessing is contradictory.
        LabelsError: the labels file is not valid.
    """
    part = Part(averaged, key, prefix, head)
    if num_classes is not None and not 1 <= num_classes <= _MOST_CLASSES:
        raise RecipeError(f"--num-classes is {num_classes}: give 1 or more, and {_MOST_CLASSES} at most")
    if hub.is_place(name) or (name not in zoo.NETWORKS and Path(name).exists()):
        if checkpoint or random or shortcut or stride_in or part.is_chosen:
            raise RecipeError(
                f"{name} defines its own network and weights: --weights, --random-weights, --ema, --key, --prefix,"
                " --head, --shortcut and --stride-in are only for a network of the zoo"
            )
        recipe = _of_place(hub.locate(name), allow_pickle=allow_pickle, stated=stated, named=labels_file is not None)
    else:
        pretrained = _pretrained(name)
        network = _residual(pretrained, shortcut, stride_in)
        recipe = _of_zoo(pretrained, network, _parameters(pretrained, checkpoint, part, random=random), stated)
    if (
        isinstance(recipe.network, Ours)
        and isinstance(recipe.network.architecture, Architecture)
        and recipe.network.architecture.anti_aliasing == "mean"
        and any(side % 32 for side in recipe.preprocessing.crop)
    ):
        raise RecipeError(f"{name} halves an image five times without a remainder: give a --crop of multiples of 32")
    classes = _classes(recipe, labels_file, num_classes)
    activation = stated.activation or recipe.activation
    if len(classes) == 1 and activation == "softmax":
        raise RecipeError("softmax of one class is always 1: give --activation sigmoid for its probability")
    notes = () if labels_file else recipe.notes
    return replace(recipe, labels=classes, activation=activation, expected=expected, notes=notes)


def _classes(recipe: Recipe, labels_file: Path | None, num_classes: int | None) -> tuple[Label, ...]:
    """Name the classes: by the labels file, by number, or as the source does."""
    if labels_file:
        classes = labels.read(labels_file)
        if num_classes not in (None, len(classes)):
            raise RecipeError(f"{labels_file} has {len(classes)} labels, not {num_classes}: give one for each class")
    else:
        classes = recipe.labels
        if num_classes is not None and (isinstance(recipe.parameters, Checkpoint) or num_classes != len(classes)):
            classes = labels.numbered(num_classes)  # as many as a data set has, but not necessarily the same
    if isinstance(recipe.parameters, PublishedFile) and len(classes) != recipe.num_classes:
        origin = recipe.parameters.place.origin
        raise RecipeError(f"{origin} has {recipe.num_classes} classes, not {len(classes)}: give a label for each")
    return classes


def _pretrained(name: str) -> zoo.Pretrained:
    pretrained = zoo.NETWORKS.get(name)
    if pretrained is None:
        known = hints.meant(name, zoo.NETWORKS) or f"there are {', '.join(zoo.NETWORKS)}"
        raise RecipeError(f"there is no network {name}; {known}")
    return pretrained


def _residual(pretrained: zoo.Pretrained, shortcut: Shortcut | None, stride_in: StrideIn | None) -> Ours:
    """Choose the variant of a network."""
    usual = ARCHITECTURES.get(pretrained.architecture)
    if shortcut and (usual is None or usual.style == "plain"):
        raise RecipeError(f"{pretrained.name} has no shortcuts to choose")
    if stride_in and (usual is None or usual.block != "bottleneck" or usual.anti_aliasing):
        raise RecipeError(f"{pretrained.name} has no bottlenecks to choose the stride of")
    if usual is None:
        return Ours(pretrained.architecture, pretrained.architecture)
    changes = [f"shortcuts {shortcut}"] if shortcut else []
    changes += [f"stride in the {stride_in}"] if stride_in else []
    title = " with ".join([pretrained.architecture, *filter(None, [" and ".join(changes)])])
    changed = replace(usual, shortcut=shortcut or usual.shortcut, stride_in=stride_in or usual.stride_in)
    return Ours(title, changed)


def _parameters(pretrained: zoo.Pretrained, checkpoint: Path | None, part: Part, *, random: bool) -> Parameters:
    if part.is_chosen and not checkpoint:
        raise RecipeError(
            "--ema, --key, --prefix and --head choose from your own checkpoint: give it with --weights FILE"
        )
    if checkpoint:
        _check_kind(checkpoint)
        return Checkpoint(checkpoint, part)
    if random:
        return Random()
    if pretrained.weights is None:
        raise RecipeError(
            f"{pretrained.name} has no published weights: give your own with --weights FILE,"
            f" or export an untrained network with --random-weights"
        )
    return OfTheZoo(pretrained.weights)


def _check_kind(checkpoint: Path) -> None:
    """Refuse a file that is not a checkpoint before anything slow begins."""
    try:
        if re.search(r"-\d{5}-of-\d{5}\.", checkpoint.name):
            raise RecipeError(f"{checkpoint} is one of several files: give the index beside it, *{shards.SUFFIX}")
        for part in shards.files(checkpoint):
            if what := foreign.file(part):
                raise RecipeError(f"{part} {what}")
    except FileNotFoundError as error:
        raise RecipeError(f"{error.filename}: there is no such file") from error


def _of_zoo(pretrained: zoo.Pretrained, network: Ours, parameters: Parameters, stated: Stated) -> Recipe:
    own = isinstance(parameters, Checkpoint)
    preprocessing = stated.over(pretrained.customary if own else pretrained.preprocessing)
    # The published accuracy holds for the published parameters and preprocessing alone.
    published = isinstance(parameters, OfTheZoo) and preprocessing == pretrained.preprocessing
    return Recipe(
        name=pretrained.name,
        network=network,
        parameters=parameters,
        labels=pretrained.labels(),
        preprocessing=preprocessing,
        activation="softmax",
        published_accuracy=pretrained.accuracy if published else None,
    )


def _of_place(place: hub.Place, *, allow_pickle: bool, stated: Stated, named: bool) -> Recipe:
    known = published.read(place)
    if known.mistake and not named:
        raise RecipeError(f"{place.origin} {known.mistake}: name its {len(known.labels)} classes with --labels FILE")
    base = _base(place, known, stated)
    preprocessing = stated.over(base)
    if len(preprocessing.mean) != len(base.mean):
        raise RecipeError(
            f"{place.origin} takes {base.channels} images: --channels {preprocessing.channels} does not fit"
        )
    count = len(known.labels)
    unnamed = f"{place.origin} names none of its {count} classes, so they are numbered: --labels FILE names them"
    return Recipe(
        name=_model_name(place.title),
        network=known.network,
        parameters=PublishedFile(place, _weights_file(place, allow_pickle=allow_pickle)),
        labels=known.labels,
        preprocessing=preprocessing,
        activation=known.activation,
        published_accuracy=None,
        notes=() if known.named else (unnamed,),
    )


def _base(place: hub.Place, known: Published, stated: Stated) -> Preprocessing:
    """Return the preprocessing to which the stated options apply."""
    if not isinstance(known.preprocessing, UnknownPreprocessingError):
        return known.preprocessing
    if None in (stated.resize, stated.crop, stated.crop_mode, stated.interpolation, stated.mean, stated.std):
        raise RecipeError(
            f"{place.origin} does not state its preprocessing ({known.preprocessing}): state it with --resize,"
            " --crop, --crop-mode, --interpolation, --mean and --std"
        )
    return zoo.NETWORKS[zoo.DEFAULT].preprocessing


def _weights_file(place: hub.Place, *, allow_pickle: bool) -> str:
    for name in (hub.SAFE, hub.SHARDED):
        if place.has(name):
            return name
    if not place.has(hub.PICKLE):
        files = hub.listed(place.names())
        raise RecipeError(f"{place.origin} has no {hub.SAFE}, but {files}: the parameters must be in that one file")
    if not allow_pickle:
        raise RecipeError(
            f"{place.origin} has no {hub.SAFE}, only the pickle {hub.PICKLE}: export/to_onnx.py --allow-pickle"
            " reads the tensors in it, and refuses whatever might run code"
        )
    return hub.PICKLE


def _model_name(title: str) -> str:
    """Turn a name of the hub, which may have capitals, into a name for the model repository."""
    return re.sub(r"[^a-z0-9_.@-]+", "-", title.lower()).lstrip("_.@-")[:100] or "model"
