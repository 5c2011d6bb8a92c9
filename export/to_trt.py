"""The command that builds a TensorRT engine from a model of the repository: `python export/to_trt.py NAME`."""

import export.interrupts  # noqa: F401 before the slow imports

# isort: split

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import get_args

from rich.progress import Progress

from export import command, console, convert, engine, repository
from export.options import add_preprocessing, stated
from models.manifest import Compatibility, Manifest
from server.cuda import find_gpu
from server.engine.backends.tensorrt import TITLES


def _run(options: argparse.Namespace) -> None:
    root, precision = options.repository, options.precision
    wanted = engine.decide(
        options.target, options.compat, refit=options.refit, max_batch=options.max_batch, gpu=find_gpu()
    )
    source = _source(options)
    name = options.name or wanted.name(convert.name_of(options.network), precision)
    if command.is_there(root, name, wanted.fingerprint(source, precision), "already built"):
        return
    command.prepare(root, name, source.file.size_bytes)
    onnx, parity = repository.read(root, source), source.parity
    if precision == "fp16" and source.precision == "fp32":
        onnx, parity = convert.to_proven_half(source, onnx, options.check_images)
    started = time.monotonic()
    timing_cache = root / f".timing-{wanted.version}-{'-'.join(wanted.targets)}.cache"
    with Progress(console=console.console, transient=True) as progress:
        content = engine.build(wanted, onnx, progress, timing_cache)
    seconds = time.monotonic() - started
    published = repository.publish(root, wanted.draft(source, name, precision, content, parity), content)
    _report(root, published, seconds)
    command.tell_of_calibration(published)


def _source(options: argparse.Namespace) -> Manifest:
    """Find the ONNX file to build from, or export it."""
    root, precision = options.repository, options.precision
    name = convert.name_of(options.network)
    known = None if precision == "fp32" else repository.find_as_it_came(root, name, precision)
    if known is None and precision == "int8":
        known = repository.find_int8_for_gpus(root, name)
    if known is None:
        return convert.find_or_export(root, options.network, options.weights_dir, options.check_images, stated(options))
    convert.check_stated(known, stated(options))
    return known


def _report(root: Path, published: Manifest, seconds: float) -> None:
    record = published.tensorrt
    if record is None:
        raise TypeError(f"{published.name} is no engine")
    rows = {
        "engine": f"{published.name} version {published.version}",
        "built by": f"{TITLES[record.flavour]} {record.version} in {seconds:.1f} s",
        "runs on": ", ".join(map(str.upper, record.compute_capabilities)),
        "precision": published.precision.upper(),
        "batches": ", ".join(f"{one.smallest}-{one.largest}" for one in record.profiles),
        "file": console.file(root, published),
    }
    if parity := published.parity:
        allowed = f"{parity.max_logit_error_allowed:.0e} allowed"
        rows["logit error"] = f"{parity.max_logit_error:.1e} of the largest, {allowed} (the ONNX file, on the CPU)"
    console.show(published, rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="to_trt.py",
        description="Build a TensorRT engine from a model's ONNX file; if that is missing, export it first.",
        epilog="Without --target, the engine is for this machine's GPU. Any machine can build engines for GeForce RTX"
        " and RTX PRO: --target sm89. No engine has run on a GPU yet.",
    )
    parser.add_argument(
        "network",
        metavar="SOURCE",
        help="a model of the repository; one of the zoo, of the hub or in a folder is exported first",
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "int8"),
        default="fp16",
        help="precision; fp16 if not given; int8 needs quantize.py --target gpu",
    )
    parser.add_argument("--max-batch", type=command.BATCH, metavar="N", default=8, help="largest batch; 8 if not given")
    parser.add_argument(
        "--target",
        type=_target,
        action="append",
        default=[],
        metavar="SM",
        help="compute capability of the GPU to build for, such as sm89; repeat it for more",
    )
    parser.add_argument(
        "--compat",
        choices=get_args(Compatibility),
        action="append",
        default=[],
        help="let later versions of TensorRT, or more GPUs, load the engine, too; repeat it for more",
    )
    parser.add_argument("--refit", action="store_true", help="make an engine whose weights can be exchanged")
    command.add(parser, "--name", "--repository", "--weights-dir", "--check-images")
    add_preprocessing(parser)
    return parser


def _target(text: str) -> str:
    number = text.lower().removeprefix("sm").replace(".", "")
    if not number.isdecimal() or not 2 <= len(number) <= 3:
        raise argparse.ArgumentTypeError(f"{text} is no compute capability: sm89 is one, also written 8.9")
    return f"sm{number}"


main = partial(command.main, _parser, _run)

if __name__ == "__main__":
    sys.exit(main())
