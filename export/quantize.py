"""The command that makes an INT8 or FP16 model of an FP32 one: `python export/quantize.py NAME`."""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape

from export import command, comparison, half, quantization, repository, samples, to_onnx
from export.quantization import METHODS, TARGETS, Method
from export.recipe import TOOLS, plan
from export.reference import image_paths
from export.report import Questions, Report, Subject, compare
from export.runtimes import RUNTIMES, available_threads, load
from export.samples import LABELS_FROM
from export.to_onnx import PHOTOS, model_name, step
from export.verify import REFERENCE_RUNTIME, read_model
from models.errors import ExpectedError
from models.manifest import Calibration, Conversion, Manifest, ModelFile, Preprocessing, QuantizationTarget
from models.weights import sha256_of

FEW_IMAGES = 100
"""ONNX Runtime's guide asks for some hundred images to calibrate on."""

_console = Console(highlight=False)


class QuantizeError(ExpectedError):
    """What was asked for cannot be made, or answers otherwise than the FP32 model too often."""


class _Images(NamedTuple):
    """Halves of one folder, or one folder for each."""

    calibrate: list[Path]
    evaluate: list[Path]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parse(arguments)
    return command.run(lambda: _run(options))


def _run(options: argparse.Namespace) -> None:
    images = _images(options)
    source = _find_or_export(options)
    target = options.target or quantization.this_machine()
    name = options.name or _default_name(options, target)
    fingerprint = _fingerprint(source, options, target, images.calibrate)
    if known := repository.find(options.repository, name, fingerprint):
        folder = options.repository / name / str(known.version)
        _console.print(f"{name} is there already as version {known.version}: {escape(str(folder))}", soft_wrap=True)
        return
    single = read_model(options.repository, source)
    if options.precision == "fp16":
        with step("convert to half precision"):
            calibration, content = None, half.to_half(single)
    else:
        methods = (options.method,) if options.method else METHODS
        method, content = _calibrate(single, images.calibrate, source.preprocessing, target, methods)
        calibration = Calibration(target=target, method=method, images=len(images.calibrate))
    draft = Manifest(
        **dict(source)
        | {
            "name": name,
            "created": datetime.now(UTC),
            "backend": options.backend,
            "precision": options.precision,
            "file": ModelFile(
                name=to_onnx.MODEL_FILE_NAME, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content)
            ),
            "parity": None,
            "tools": source.tools | TOOLS,
            "fingerprint": fingerprint,
        }
    )
    subjects = [Subject(source, single, REFERENCE_RUNTIME), Subject(draft, content, options.backend)]
    questions = Questions(images.evaluate, options.threads, options.labels_from, seconds=options.seconds)
    report = compare(subjects, questions)
    report.show()
    conversion = _conversion(source, calibration, report)
    if conversion.top1_agreement < options.min_agreement / 100:
        raise QuantizeError(
            f"top-1 agreement with FP32 is {conversion.top1_agreement:.1%} on {conversion.images} images,"
            f" {options.min_agreement:g} % is wanted: nothing was added to the repository"
        )
    published = repository.publish(options.repository, draft.model_copy(update={"conversion": conversion}), content)
    folder = options.repository / name / str(published.version)
    _console.print(f"{name} version {published.version}: {escape(str(folder))}", soft_wrap=True)
    if calibration and calibration.images < FEW_IMAGES:
        _console.print(f"[yellow]Calibrated on {calibration.images} images only: some hundred are better.[/]")
    if conversion.images < FEW_IMAGES:
        _console.print(f"[yellow]Compared on {conversion.images} images only: its agreement says little.[/]")


def _default_name(options: argparse.Namespace, target: QuantizationTarget) -> str:
    """Name the model after what it is: as a version of the FP32 model it would silently replace that."""
    return f"{options.network}-{options.precision}" + ("-gpu" if (options.precision, target) == ("int8", "gpu") else "")


def _images(options: argparse.Namespace) -> _Images:
    """Decide which images to calibrate and which to evaluate on: without a folder for each, every second one."""
    if options.precision == "fp16":
        return _Images([], image_paths(options.images or options.calibration or PHOTOS))
    if options.calibration is None:
        raise QuantizeError("INT8 is calibrated on real images: give some with --calibration FOLDER")
    paths = image_paths(options.calibration)
    if options.images:
        return _Images(paths, image_paths(options.images))
    if len(paths) == 1:
        raise QuantizeError(f"{options.calibration} has one image: give two at least, to calibrate and to evaluate on")
    return _Images(paths[::2], paths[1::2])


def _find_or_export(options: argparse.Namespace) -> Manifest:
    if found := repository.find_fp32(options.repository, options.network):
        return found
    recipe = plan(options.network)
    draft, model = to_onnx.convert(recipe, options.network, recipe.obtain_weights(options.weights_dir), PHOTOS)
    return repository.publish(options.repository, draft, model)


def _fingerprint(
    source: Manifest, options: argparse.Namespace, target: QuantizationTarget, images: Sequence[Path]
) -> str:
    """Digest all that determines the file. FP16 depends neither on images nor on a target."""
    converter = "quantization.py" if images else "half.py"
    ingredients = [
        source.file.sha256,
        options.precision,
        options.backend,
        TOOLS,
        Path(__file__).with_name(converter).read_text(),
        *([target, options.method, *map(sha256_of, images)] if images else []),
    ]
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def _calibrate(
    single: bytes,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    target: QuantizationTarget,
    methods: Sequence[Method],
) -> tuple[Method, bytes]:
    """Quantise by each method and return the one that stays closest to FP32 on the images it was calibrated on.

    The images it is judged by are not looked at: the best of several noisy figures would be better than it is.
    """
    files: dict[Method, bytes] = {}
    pixels = samples.pixels(paths, preprocessing)[:, 0]
    for method in methods:
        with step(f"calibrate on {len(pixels)} images: {method}"):
            files[method] = quantization.quantize(single, pixels, target, method)
    if len(files) == 1:
        return next(iter(files.items()))
    with step("choose the method"):
        runs = [load(content, REFERENCE_RUNTIME, available_threads()) for content in (single, *files.values())]
        reference, *candidates = comparison.answers(runs, paths, preprocessing)
    divergences = (answers.divergence(reference) for answers in candidates)
    _, best = min(zip(divergences, files, strict=True))
    _console.print(f"closest to FP32 on the images of the calibration: {best}")
    return best, files[best]


def _conversion(source: Manifest, calibration: Calibration | None, report: Report) -> Conversion:
    reference, line = report.lines
    return Conversion(
        source=source.name,
        source_version=source.version,
        source_sha256=source.file.sha256,
        calibration=calibration,
        images=report.images,
        top1_agreement=line.top1_agreement,
        max_logit_error=line.max_logit_error,
        accuracy=line.accuracy.get(1),
        source_accuracy=reference.accuracy.get(1),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="quantize.py",
        description="Make a model of lower precision, compare it with FP32, and add it to the repository if it agrees.",
    )
    parser.add_argument("network", metavar="NAME", help="an FP32 model of the repository; one of the zoo is exported")
    parser.add_argument("--precision", choices=("int8", "fp16"), default="int8", help="int8 if not given")
    parser.add_argument("--calibration", type=Path, metavar="FOLDER", help="images like those to be classified")
    parser.add_argument(
        "--images", type=Path, metavar="FOLDER", help="images to compare on; if not given, half of the others"
    )
    parser.add_argument("--labels-from", choices=LABELS_FROM, default="auto", help="as in verify.py")
    parser.add_argument("--target", choices=TARGETS, help="what will run it; this machine's CPU if not given")
    parser.add_argument("--method", choices=METHODS, help="of calibration; if not given, the best of all is taken")
    parser.add_argument(
        "--min-agreement", type=float, metavar="PERCENT", default=99.0, help="least top-1 agreement with FP32"
    )
    parser.add_argument(
        "--backend", choices=RUNTIMES, default="onnx", help="that serves it where the server's settings name none"
    )
    parser.add_argument(
        "--name", type=model_name, metavar="AS", help="in the repository, if not NAME-int8 or NAME-fp16"
    )
    parser.add_argument("--repository", type=Path, metavar="DIR", default=Path("model_repository"))
    parser.add_argument("--weights-dir", type=Path, metavar="DIR", default=Path("weights"), help="as in to_onnx.py")
    parser.add_argument("--threads", type=int, metavar="N", default=available_threads(), help="of one inference")
    parser.add_argument(
        "--seconds", type=float, metavar="S", default=10, help="for measuring speed, in all; 0 leaves it out"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
