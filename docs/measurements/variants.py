"""The whole service with several settings, in turns: prints images per second by number of connections.

    python docs/measurements/variants.py ../shared/data/imagenet-sample --model efficientnet_lite0 \
        "--instances 1" "--instances 2"

Each variant is a server's flags. A round starts each server once; a cell is the median of the rounds, and in brackets
the median of the ratios to the first variant within a round, which says more on a noisy machine.
"""

import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import uvloop

from loadtest import command, loops, photos, processes
from loadtest.loops import Target
from loadtest.turns import in_turns

WARM_UP_S = 2.0
"""How long a server takes to learn which batch sizes pay."""


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, help="folder of JPEG files")
    parser.add_argument(
        "variants", nargs="+", help="flags of the server; the first is what the others are compared with"
    )
    parser.add_argument("--model", required=True)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10)
    asked = parser.parse_args()
    images = [path.read_bytes() for path in photos.find(asked.photos)]
    paces: dict[str, list[list[float]]] = {variant: [] for variant in asked.variants}
    for number, variant in in_turns(asked.variants, asked.rounds):
        paces[variant].append(_paces(variant, images, asked))
        print(
            f"round {number + 1}, {variant}: {' '.join(f'{pace:.1f}' for pace in paces[variant][-1])}", file=sys.stderr
        )
    print(f"| {asked.model} | {' | '.join(map(str, asked.connections))} |\n| --- |{' --- |' * len(asked.connections)}")
    first = np.array(paces[asked.variants[0]])
    for variant, rounds in paces.items():
        middle, ratios = np.median(rounds, axis=0), np.median(rounds / first, axis=0)
        cells = [f"{pace:.1f} ({ratio:.2f})" for pace, ratio in zip(middle, ratios, strict=True)]
        print(f"| `{variant}` | {' | '.join(cells)} |")
    return 0


def _paces(variant: str, images: list[bytes], asked: argparse.Namespace) -> list[float]:
    flags = [*shlex.split(variant), "--repository", str(asked.repository), "--models", asked.model]
    with processes.serve(*flags, quiet=True) as server:
        target = Target(f"{server.url}/classify")
        return [uvloop.run(_pace(target, images, count, asked.seconds)) for count in asked.connections]


async def _pace(target: Target, images: list[bytes], connections: int, seconds: float) -> float:
    """Images a second.

    Raises:
        LoadTestError: an answer was not right.
    """
    _, sent = await loops.ask_alone(target, images)
    window = await loops.closed_loop(target, sent, connections, WARM_UP_S, seconds, lambda: None)
    if window.faults:
        raise command.LoadTestError(f"{window.faults} of the answers were not right")
    return len(window.latencies_s) / window.seconds


if __name__ == "__main__":
    sys.exit(command.run(main))
