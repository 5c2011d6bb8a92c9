"""From a network to a verified model: every source takes the same way through graph, parity gate and manifest.

The functions return a draft manifest without its final version number and the file's content, for
`repository.publish`. Torch and ONNX take seconds to import, so functions import them when needed: a wrong request fails
at once.
"""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, assert_never

from export import backends, expect, parity, repository, samples
from export.console import step, warn
from export.options import NOTHING, Stated, as_options
from export.precision import Lowered, Wanted
from export.recipe import OPSET, TOOLS, Recipe, RecipeError, plan
from models import foreign, hub
from models.errors import first_line
from models.manifest import Calibration, Manifest, Parity
from models.weights import sha256_of
from server.engine.classes import Extras

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

ONNX_FILE = "model.onnx"
PROGRAM_FILE = "model.pt2"

Made = tuple[Manifest, bytes]


class _Source(NamedTuple):
    """A network, and the photos on which its exports are compared with it."""

    network: "nn.Module"
    photos: "NDArray[np.uint8]"


def to_onnx(recipe: Recipe, name: str, weights_file: Path | None, images: Path) -> Made:
    """Export a recipe to ONNX, and verify that the file computes what PyTorch computes on a folder of images.

    Raises:
        ExpectedError: the checkpoint does not fit, an image cannot be read, or the file fails the parity gate.
    """
    source = _load(recipe, weights_file, images)
    with step("export to ONNX"):
        from torch.onnx import OnnxExporterError

        from export import graph, last_layer

        preprocessing = recipe.preprocessing
        complete = graph.CompleteGraph(source.network, preprocessing, recipe.top_k, recipe.activation)
        try:
            content = graph.to_onnx(complete, preprocessing.crop, OPSET)
        except OnnxExporterError as error:
            reason = first_line(error.__cause__ or error)
            raise RecipeError(f"PyTorch does not export {recipe.architecture} ({reason}): {foreign.BY_ONNX}") from error
        sizes = last_layer.sizes(content)
    draft = describe(recipe, name, weights_file, source.network, content).model_copy(update=sizes._asdict())
    return _proven(draft, content, source, recipe, last_layer.head(content))


def program_fingerprint(recipe: Recipe, precision: str) -> str:
    """Digest everything that determines a program."""
    return repository.digest([recipe.fingerprint(), precision, sha256_of(Path(__file__).with_name("program.py"))])


def to_program(recipe: Recipe, name: str, weights_file: Path | None, images: Path, precision: str) -> Made:
    """Export a recipe as a PyTorch program in fp32 or fp16, and verify it like an ONNX file.

    Raises:
        ExpectedError: as `to_onnx`.
    """
    source = _load(recipe, weights_file, images)
    with step("export the program"):
        from export import program

        preprocessing = recipe.preprocessing
        complete = program.complete(source.network, preprocessing, recipe.top_k, recipe.activation, precision)
        content = program.to_program(complete, preprocessing.crop)
        layer = program.last_layer_of(content)
    draft = repository.derive(
        describe(recipe, name, weights_file, source.network, content),
        PROGRAM_FILE,
        content,
        backend="torch",
        precision=precision,
        opset=None,
        tools={"torch": TOOLS["torch"]},
        fingerprint=program_fingerprint(recipe, precision),
        **layer.sizes._asdict(),
    )
    return _proven(draft, content, source, recipe, layer.head)


def describe(recipe: Recipe, name: str, weights_file: Path | None, network: "nn.Module", content: bytes) -> Manifest:
    """Draft an ONNX file's manifest before the parity gate, without the sizes of features and activation maps."""
    return Manifest(
        name=name,
        version=1,
        created=datetime.now(UTC),
        architecture=recipe.architecture,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        weights=recipe.describe_weights(weights_file),
        published_accuracy=recipe.published_accuracy,
        preprocessing=recipe.preprocessing,
        activation=recipe.activation,
        num_classes=recipe.num_classes,
        top_k=recipe.top_k,
        backend="onnx",
        precision="fp32",
        opset=OPSET,
        file=repository.model_file(ONNX_FILE, content),
        parity=None,
        tools=dict(recipe.tools),
        fingerprint=recipe.fingerprint(),
        labels=recipe.labels,
    )


def find_or_export(
    root: Path, source: str, weights_dir: Path, images: Path = samples.PHOTOS, stated: Stated = NOTHING
) -> Manifest:
    """Return the FP32 ONNX file of a source; if there is none, export it as stated.

    For a name in the repository, this is the newest version; for the hub or a folder, the export of its current files.

    Raises:
        ExpectedError: the source cannot be exported, or the existing file was not exported as stated.
    """
    if not hub.is_place(source) and (found := repository.find_fp32(root, source)):
        check_stated(found, stated)
        return found
    recipe = plan(source, stated=stated)
    known = repository.find(root, recipe.name, recipe.fingerprint())
    if isinstance(known, Manifest):
        return known
    repository.check_room(root)
    return repository.publish(root, *to_onnx(recipe, recipe.name, recipe.obtain_weights(weights_dir), images))


def name_of(source: str) -> str:
    """Return a source's name in the repository.

    Raises:
        ExpectedError: as `plan`.
    """
    return plan(source).name if hub.is_place(source) else source


def check_stated(found: Manifest, stated: Stated) -> None:
    """Check that a model of the repository was exported as stated.

    Raises:
        ExpectedError: it was exported with other options.
    """
    same = stated.over(found.preprocessing) == found.preprocessing
    if not same or stated.activation not in (None, found.activation):
        raise RecipeError(
            f"{found.name} version {found.version} was exported with {as_options(found.preprocessing)}"
            f" --activation {found.activation}: export what you state with to_onnx.py under another --name,"
            " and give that name here"
        )


def to_proven_half(source: Manifest, single: bytes, images: Path) -> tuple[bytes, Parity | None]:
    """Convert an ONNX file to half precision, and compare it with the FP32 file.

    The FP32 file was compared with PyTorch when it was exported, so both errors together bound the new file's distance
    from PyTorch. The parity is None if the FP32 file was never compared.

    Raises:
        ExpectedError: the file cannot be converted, or the two differ by more than the tolerance.
    """
    content = halve(source, single)
    with step("compare with PyTorch"):
        from export import last_layer

        backend = backends.load(source, single)
        wanted = Extras.FEATURES if source.features else Extras.NONE
        measured = parity.check(
            repository.derive(source, ONNX_FILE, content, precision="fp16"),
            content,
            lambda pixels: parity.Known(*backend.run(list(pixels), wanted)[2:4]),
            samples.photos(images, source.preprocessing),
            truth_error=source.parity.max_logit_error if source.parity else 0,
            head=last_layer.head(content),
        )
    return content, source.parity and measured


def to_lower_precision(source: Manifest, single: bytes, name: str, wanted: Wanted) -> Lowered:
    """Make files of lower precision from an FP32 one, one for each fold, without comparing them with it.

    Raises:
        ExpectedError: an image cannot be read, or the file is not a complete graph.
    """
    calibration = None
    match wanted.precision:
        case "bf16":
            contents = [single]  # the same file; the manifest makes the backend compute in bfloat16
        case "fp16":
            contents = [halve(source, single)]
        case "int8":
            from export import quantization, temperature

            network = temperature.undivided(single)
            made = [quantization.calibrate(source, network, fold.calibrate, wanted) for fold in wanted.folds]
            contents = [_with_temperature(source, quantized.content) for quantized in made]
            calibration = Calibration(
                target=wanted.target,
                method=made[0].method,
                images=len(wanted.folds[0].calibrate),
                rounding=made[0].rounding,
                backend="openvino" if made[0].rounding == "inputs" else None,
            )
        case _:
            assert_never(wanted.precision)
    draft = repository.derive(
        source,
        ONNX_FILE,
        contents[0],
        name=name,
        backend=wanted.backend,
        precision=wanted.precision,
        parity=None,
        tools=source.tools | TOOLS,
        fingerprint=wanted.fingerprint(source),
    )
    return Lowered(draft, contents, calibration)


def halve(source: Manifest, single: bytes) -> bytes:
    """Convert the network of an FP32 graph to FP16; a temperature stays unchanged."""
    with step("convert to half precision"):
        from export import half, temperature

        return _with_temperature(source, half.to_half(temperature.undivided(single)))


def _with_temperature(source: Manifest, network: bytes) -> bytes:
    """Add the source's temperature to a file that was made from its network alone."""
    from export import temperature

    return temperature.divided(network, source.confidence.temperature) if source.confidence else network


def _load(recipe: Recipe, weights_file: Path | None, images: Path) -> _Source:
    with step("load the network"):
        from models import checkpoint

        photos = samples.photos(images, recipe.preprocessing)
        network = recipe.build(weights_file)
        _check_size(recipe, network)
    if weights_file and checkpoint.is_untracked(network):
        warn(f"{weights_file.name} has batch norms that saw no data, as if it had never been trained.")
    if doubt := recipe.doubt(network):
        warn(doubt)
    return _Source(network, photos)


def _check_size(recipe: Recipe, network: "nn.Module") -> None:
    """Run the network once, as those of other libraries may take images of a single size."""
    import torch

    size = recipe.preprocessing
    try:
        with torch.inference_mode():
            network(torch.zeros(1, len(size.mean), *size.crop))
    except Exception as error:  # a network may raise anything
        reason = first_line(error)
        raise RecipeError(f"{recipe.architecture} does not take images of {size.crop_text}: {reason}") from error


def _proven(draft: Manifest, content: bytes, source: _Source, recipe: Recipe, head: parity.Head) -> Made:
    with step("compare with PyTorch"):
        from export.reference import reference_answers

        truth = partial(reference_answers, source.network, preprocessing=draft.preprocessing)
        measured = parity.check(draft, content, truth, source.photos, head=head)
    return expect.hold(draft.model_copy(update={"parity": measured}), content, recipe.expected), content
