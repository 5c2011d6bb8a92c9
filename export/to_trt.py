"""The command that builds a TensorRT engine from a model of the repository: `python export/to_trt.py NAME`."""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from export import command, engine, repository
from export.engine import Build, EngineError
from export.recipe import plan
from export.to_onnx import PHOTOS, convert, model_name, show, step
from models import manifest
from models.manifest import Compatibility, Manifest, ManifestError, ModelFile, Parity

PLAN_FILE_NAME = "model.plan"
SUFFIXES = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}

_console = Console(highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    wanted = engine.decide(
        options.target, options.compat, refit=options.refit, max_batch=options.max_batch, gpu=engine.find_gpu()
    )
    source = _find_or_export(options)
    name = options.name or _default_name(options, wanted)
    fingerprint = _fingerprint(source, options.precision, wanted)
    if known := repository.find(options.repository, name, fingerprint):
        folder = options.repository / name / str(known.version)
        _console.print(f"{name} is already built as version {known.version}: {escape(str(folder))}", soft_wrap=True)
        return
    onnx, parity = _in_precision(source, options)
    started = time.monotonic()
    timing_cache = options.repository / f".timing-{wanted.version}-{'-'.join(wanted.targets)}.cache"
    with Progress(console=_console, transient=True) as progress:
        content = engine.build(wanted, onnx, progress, timing_cache)
    seconds = time.monotonic() - started
    draft = Manifest(
        **dict(source)
        | {
            "name": name,
            "created": datetime.now(UTC),
            "backend": "tensorrt",
            "precision": options.precision,
            "file": ModelFile(name=PLAN_FILE_NAME, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)),
            "parity": parity,
            "tools": source.tools | {wanted.flavour: wanted.version},
            "fingerprint": fingerprint,
            "tensorrt": wanted.record(source.file.sha256),
        }
    )
    _report(repository.publish(options.repository, draft, content), options.repository, seconds)


def _default_name(options: argparse.Namespace, wanted: Build) -> str:
    """Name an engine after what it is: it is no version of the ONNX model, which runs on every machine."""
    return "-".join((options.network, SUFFIXES[wanted.flavour], options.precision, *wanted.targets))


def _find_or_export(options: argparse.Namespace) -> Manifest:
    """Return the newest ONNX file of the model to start from; FP16 is converted from FP32.

    Raises:
        ExpectedError: there is none and it cannot be exported, or INT8 was asked for and is not there.
    """
    network = options.network
    if options.precision == "int8":
        found = repository.find_int8(options.repository, network, "gpu")
        if found is None:
            raise EngineError(
                f"{options.repository} has no INT8 file of {network} for GPUs:"
                f" python export/quantize.py {network} --target gpu makes one"
            )
        return found
    if found := repository.find_fp32(options.repository, network):
        return found
    recipe = plan(network)
    draft, model = convert(recipe, network, recipe.obtain_weights(options.weights_dir), options.check_images)
    return repository.publish(options.repository, draft, model)


def _fingerprint(source: Manifest, precision: str, wanted: Build) -> str:
    converter = Path(__file__).with_name("half.py").read_text() if precision == "fp16" else None
    ingredients = [precision, converter, wanted.record(source.file.sha256).model_dump()]
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _in_precision(source: Manifest, options: argparse.Namespace) -> tuple[bytes, Parity | None]:
    """Read the source's file, in half precision where that was asked for, and how close to PyTorch it is.

    Raises:
        ExpectedError: the file is not what its manifest says, or half precision is not close enough.
    """
    try:
        content = manifest.read_model_file(options.repository / source.name / str(source.version), source)
    except ManifestError as error:
        raise EngineError(str(error)) from error
    if options.precision != "fp16":
        return content, source.parity
    with step("convert to half precision"):
        from export import half  # imports torch, which takes seconds

        halved = half.to_half(content)
    with step("compare with PyTorch"):
        return halved, half.check(halved, content, source, options.check_images)


def _report(published: Manifest, root: Path, seconds: float) -> None:
    record = published.tensorrt
    if record is None:
        raise TypeError(f"{published.name} is no engine")
    folder = root / published.name / str(published.version)
    rows = {
        "engine": f"{published.name} version {published.version}",
        "built by": f"{engine.TITLES[record.flavour]} {record.version} in {seconds:.1f} s",
        "runs on": ", ".join(map(str.upper, record.compute_capabilities)),
        "precision": published.precision.upper(),
        "batches": ", ".join(f"{one.smallest}-{one.largest}" for one in record.profiles),
        "file": f"{escape(str(folder))}/{published.file.name}, {published.file.size_bytes / 1e6:.1f} MB",
    }
    if parity := published.parity:
        allowed = f"{parity.max_logit_error_allowed:.0e} allowed"
        rows["logit error"] = f"{parity.max_logit_error:.1e} of the largest, {allowed} (the ONNX file, on the CPU)"
    show(published, rows)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="to_trt.py",
        description="Build a TensorRT engine from a model's ONNX file, which is exported first where it is missing.",
        epilog="Without --target, the engine is for this machine's GPU. Engines for GeForce RTX and RTX PRO are built"
        " on any machine: --target sm89.",
    )
    parser.add_argument("network", metavar="NAME", help="a model of the repository or a network of the zoo")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="fp16", help="fp16 if not given; int8: see quantize.py"
    )
    parser.add_argument("--max-batch", type=_batch, metavar="N", default=8, help="most images at once; 8 if not given")
    parser.add_argument(
        "--target",
        type=_target,
        action="append",
        default=[],
        metavar="SM",
        help="compute capability of the GPU to build for, such as sm89; may be repeated",
    )
    parser.add_argument(
        "--compat",
        choices=get_args(Compatibility),
        action="append",
        default=[],
        help="let later versions of TensorRT, or more GPUs, load the engine too; may be repeated",
    )
    parser.add_argument("--refit", action="store_true", help="an engine whose weights can be exchanged")
    parser.add_argument("--name", type=model_name, metavar="AS", help="name in the repository, if not the usual one")
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("model_repository"))
    parser.add_argument(
        "--weights-dir", type=Path, metavar="DIR", default=Path("weights"), help="where downloads are kept"
    )
    parser.add_argument("--check-images", type=Path, metavar="FOLDER", default=PHOTOS, help="photos to compare on")
    return parser.parse_args(arguments)


def _target(text: str) -> str:
    number = text.lower().removeprefix("sm").replace(".", "")
    if not number.isdecimal() or not 2 <= len(number) <= 3:
        raise argparse.ArgumentTypeError(f"{text} is no compute capability: sm89 is one, also written 8.9")
    return f"sm{number}"


def _batch(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise argparse.ArgumentTypeError(f"{text} is no batch size from 1 to 1024")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
