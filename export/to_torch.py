"""The command that exports a network as a program of PyTorch: `python export/to_torch.py NAME`.

The reference backend: it shows what PyTorch itself does with the same graph, on the CPU or on a GPU.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from export import command
from export.recipe import Recipe
from export.to_onnx import add_recipe, describe, publish, recipe_of, step
from models import zoo
from models.manifest import Manifest, ModelFile
from models.weights import sha256_of

MODEL_FILE_NAME = "model.pt2"
_OUR_SOURCES = (Path(__file__), Path(__file__).with_name("program.py"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    recipe = recipe_of(options.network, options)
    suffix = "" if options.precision == "fp32" else f"-{options.precision}"
    name = options.name or f"{options.network}-torch{suffix}"
    fingerprint = _fingerprint(recipe, options.precision)
    publish(options, name, fingerprint, lambda: _convert(recipe, name, fingerprint, options))


def _fingerprint(recipe: Recipe, precision: str) -> str:
    ingredients = [recipe.fingerprint(), precision, *map(sha256_of, _OUR_SOURCES)]
    return hashlib.sha256(json.dumps(ingredients).encode()).hexdigest()


def _convert(recipe: Recipe, name: str, fingerprint: str, options: argparse.Namespace) -> tuple[Manifest, bytes]:
    """Make the program, proven to compute what the network computes.

    Raises:
        ExpectedError: weights cannot be had, an image cannot be read, or parity fails.
    """
    weights_file = recipe.obtain_weights(options.weights_dir)
    with step("load the network"):
        # These import torch, which takes seconds: not for an error above or an export that is there already.
        from export import half, parity, program
        from export.graph import CompleteGraph
        from export.reference import reference_images

        preprocessing = recipe.entry.preprocessing
        photos = reference_images(options.check_images, preprocessing)
        network = recipe.build(weights_file)
    with step("export the program"):
        folded = program.fused(network)  # before it is rounded to half precision, which keeps more of it
        computed = program.HalfNetwork(folded) if options.precision == "fp16" else folded
        complete = CompleteGraph(computed, preprocessing, recipe.top_k).eval()
        model = program.to_program(complete, preprocessing.crop)
    with step("compare with PyTorch"):
        allowed = half.MAX_LOGIT_ERROR if options.precision == "fp16" else parity.MAX_LOGIT_ERROR
        measured = parity.compare(lambda: program.load(model), network, preprocessing, photos, allowed=allowed)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    draft = describe(recipe, name, weights_file, parameters, model, measured)
    changes = {
        "backend": "torch",
        "precision": options.precision,
        "opset": None,
        "file": ModelFile(name=MODEL_FILE_NAME, sha256=draft.file.sha256, size_bytes=draft.file.size_bytes),
        "tools": {"torch": draft.tools["torch"]},
        "fingerprint": fingerprint,
    }
    return Manifest(**dict(draft) | changes), model


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="to_torch.py",
        description="Export a network as a program of PyTorch (torch.export), compare it with the network itself, and"
        " add it to the model repository as NAME-torch. A server needs torch to run it.",
    )
    parser.add_argument("network", metavar="NAME", help=f"one of {', '.join(zoo.ENTRIES)}")
    parser.add_argument("--precision", choices=("fp32", "fp16"), default="fp32", help="fp32 if not given")
    add_recipe(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
