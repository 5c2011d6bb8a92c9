"""`classify IMAGE …`: send images to a running service and print their classes.

An IMAGE is a file, a folder (searched recursively), a pattern ('photos/**/*.jpg'), an http(s) address, or - for
standard input. Images that fail are reported on standard error; the others are still printed.
"""

import argparse
import asyncio
import csv
import io
import json
import math
import os
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeVar

import httpx
from tqdm import tqdm

from resnet_serving_client import sources
from resnet_serving_client.clients import DEFAULT_DEADLINE_S, DEFAULT_URL, AsyncClient
from resnet_serving_client.errors import ClientError, ProblemError
from resnet_serving_client.features import FeaturesFile, HeatmapFolder, write_heatmap
from resnet_serving_client.responses import Classification
from resnet_serving_client.sources import SourceError

API_KEY_VARIABLE = "CLASSIFY_API_KEY"
"""Not a flag, because every user of a machine can see the flags of a process."""

Result = TypeVar("Result")
Outcome = Classification | ClientError | SourceError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0: all images were classified, 1: some were not, 2: wrong arguments, 130: interrupted."""
    options = _parse(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files and classes may have characters that it lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        failed = asyncio.run(_classify_all(options))
        sys.stdout.flush()
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # for example `classify … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 1 if failed else 0


async def _classify_all(options: argparse.Namespace) -> int:
    """Print every image's outcome, in the order of the images; returns how many failed."""
    failed = 0
    features = FeaturesFile(options.features) if options.features else None
    heatmaps = HeatmapFolder(options.heatmaps) if options.heatmaps else None
    async with (
        AsyncClient(
            options.url,
            deadline_s=options.deadline_s,
            connections=options.in_flight,
            api_key=os.environ.get(API_KEY_VARIABLE, "").strip(),
        ) as client,
        httpx.AsyncClient(timeout=options.deadline_s) as web,
    ):

        async def classify(name: str) -> tuple[str, Outcome]:
            drawn = heatmaps.reserve(name) if heatmaps else None  # before any waiting, so in the order of the images
            try:
                image = await sources.read(name, web)
                answer = await client.classify(
                    image,
                    top_k=options.top_k,
                    model=options.model,
                    version=options.version,
                    crops=options.crops,
                    include=["features"] if features else (),
                    coverage=options.coverage,
                    reject=options.reject or None,
                )
                if drawn:
                    write_heatmap(drawn, await client.heatmap(image, model=answer.model, version=answer.version))
            except (ClientError, SourceError) as error:
                return name, error
            return name, answer

        if options.wait_s:
            await client.wait_until_ready(options.wait_s)
        names = [name for given in options.images for name in sources.expand(given)]
        if options.format == "csv":
            print(_csv_row(_CSV_HEAD + (("known",) if options.reject else ())))
        hidden = len(names) == 1 or not sys.stderr.isatty()
        with tqdm(total=len(names), unit=" images", leave=False, disable=hidden) as progress:
            async with aclosing(in_order(classify, names, options.in_flight)) as outcomes:
                async for name, outcome in outcomes:
                    with progress.external_write_mode():
                        failed += not _report(name, outcome, options.format)
                    progress.update()
                    if features:
                        features.add(name, outcome if isinstance(outcome, Classification) else None)
        if features:
            features.write()
    return failed


async def in_order(
    act: Callable[[str], Awaitable[Result]], names: Iterable[str], in_flight: int
) -> AsyncGenerator[Result]:
    """Yield what `act` returns for each name, in the order of the names; at most `in_flight` calls run at once."""
    tasks: deque[asyncio.Future[Result]] = deque()
    try:
        for name in names:
            if len(tasks) == in_flight:
                yield await tasks.popleft()
            tasks.append(asyncio.ensure_future(act(name)))
        while tasks:
            yield await tasks.popleft()
    finally:
        for task in tasks:
            task.cancel()


def _report(name: str, outcome: Outcome, form: str) -> bool:
    """Print an outcome; returns whether it is a classification."""
    if isinstance(outcome, Classification):
        print(_FORMATS[form](name, outcome), flush=True)
        return True
    if form == "json":
        code = outcome.code if isinstance(outcome, ProblemError) else None
        print(json.dumps({"image": name, "error": {"code": code, "detail": str(outcome)}}), flush=True)
    print(f"{name}: {outcome}", file=sys.stderr)
    return False


def _table(name: str, answer: Classification) -> str:
    untrained = ", whose weights are untrained" if answer.random_weights else ""
    lines = [f"{name}, classified by {answer.model}{untrained} in {answer.timings_ms.total:.0f} ms:"]
    if answer.known is False:
        lines.append("  not sure to be any of its classes")
    for prediction in answer.predictions:
        wordnet = f" ({prediction.wordnet_id})" if prediction.wordnet_id else ""
        lines.append(f"  {prediction.probability:6.1%}  {prediction.label}{wordnet}")
    return "\n".join(lines)


def _json(name: str, answer: Classification) -> str:
    plain = asdict(replace(answer, logits=None, features=None, heatmap=None))
    shown = {"image": name, **{key: value for key, value in plain.items() if key not in _ARRAYS}}
    return json.dumps(shown, ensure_ascii=sys.stdout.encoding.lower() != "utf-8")


_ARRAYS = {"logits", "features", "heatmap"}
_CSV_HEAD = ("image", "rank", "class_id", "wordnet_id", "label", "probability", "model", "version")


def _csv(name: str, answer: Classification) -> str:
    known = () if answer.known is None else (json.dumps(answer.known),)
    return "\n".join(
        _csv_row(
            (name, rank, one.class_id, one.wordnet_id, one.label, one.probability, answer.model, answer.version, *known)
        )
        for rank, one in enumerate(answer.predictions, start=1)
    )


def _csv_row(cells: Sequence[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(cells)
    return line.getvalue()


_FORMATS: dict[str, Callable[[str, Classification], str]] = {"table": _table, "json": _json, "csv": _csv}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="classify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--url", default=DEFAULT_URL, help="address of the service (default %(default)s)")
    parser.add_argument("--model", metavar="NAME", help="model, if not the service's default")
    parser.add_argument("--version", type=_positive, metavar="N", help="version of the model, if not the newest")
    parser.add_argument("--top-k", type=_positive, metavar="N", help="classes to print for each image (default 5)")
    parser.add_argument("--crops", type=int, choices=[1, 10], help="10: slower, a little more accurate (default 1)")
    parser.add_argument(
        "--coverage",
        type=_share,
        metavar="P",
        help="instead of --top-k: the smallest set that holds the true class with this probability (calibrated models)",
    )
    parser.add_argument(
        "--reject", action="store_true", help="report images that belong to no class of the model (calibrated models)"
    )
    parser.add_argument(
        "--format",
        choices=list(_FORMATS),
        default="table",
        help="json: a line for each image; csv: a line for each class (with --reject, its last column says known)",
    )
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help="write the features of each image to a .npy or .parquet file"
    )
    parser.add_argument(
        "--heatmaps", type=Path, metavar="FOLDER", help="write each photo with its heat map into this folder"
    )
    parser.add_argument(
        "--in-flight", type=_positive, default=8, metavar="N", help="images at once (default %(default)s)"
    )
    parser.add_argument(
        "--deadline-s",
        type=_seconds,
        default=DEFAULT_DEADLINE_S,
        metavar="S",
        help="seconds for one image, including all attempts (default %(default)g)",
    )
    parser.add_argument(
        "--wait-s", type=_seconds, default=0, metavar="S", help="seconds to wait for the service to become ready"
    )
    return parser.parse_intermixed_args(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _share(text: str) -> float:
    if not 0 < (number := float(text)) < 1:
        raise argparse.ArgumentTypeError("must lie between 0 and 1")
    return number


def _seconds(text: str) -> float:
    if not 0 <= (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return number


if __name__ == "__main__":
    sys.exit(main())
