"""`python docs/measurements/devices.py`: how many devices a machine's CPUs can feed. Prints the table of devices.md.

Simulates (`loadtest/simulate.py`) machines with more cores and devices than there were to measure on. An image costs
the CPUs what `loadtest/devices.py` measured, and the devices compute without them. Each cell is the highest rate of
Poisson arrivals whose 99th percentile is still within the limit, and its share of what the devices can do. The HTTP
workers and decoding threads are those that the server starts by default with so many cores.
"""

import argparse
import sys
from unittest import mock

from loadtest import command
from loadtest.command import numbers
from loadtest.simulate import Costs, Inference, Shape, simulate
from server import settings as settings_module
from server.settings import Settings

MOST_FAILED = 0.001
"""Share of requests that may be refused or late."""
STEP = 0.02
"""Resolution of the search, as a share of what bounds it."""


def main() -> int:
    """Print a row for each number of cores."""
    options = _parse()
    print(f"| cores | workers x decoders | {' | '.join(f'{count} devices' for count in options.devices)} |")
    print(f"| ---: | ---: |{' ---: |' * len(options.devices)}")
    for cores in options.cores:
        settings = _settings(cores, options)
        cells = []
        for devices in options.devices:
            per_s = _most_per_s(cores, settings, devices, options)
            cells.append(f"{per_s:.0f} ({per_s / (devices * options.per_s):.0%})")
        workers = f"{settings.http_workers} x {settings.decode_threads}"
        print(f"| {cores} | {workers} | {' | '.join(cells)} |", flush=True)
    return 0


def _settings(cores: int, options: argparse.Namespace) -> Settings:
    """The server's own, on a machine with so many cores."""
    given = {"http_workers": options.http_workers} if options.http_workers else {}
    with mock.patch.object(settings_module, "available_cpus", return_value=cores):
        return Settings(max_batch=options.max_batch, queue_size=options.queue_size, **given)


def _most_per_s(cores: int, settings: Settings, devices: int, options: argparse.Namespace) -> float:
    """The highest rate that is answered in time."""
    costs = _costs(cores, options)
    shape = Shape.of(settings, costs)._replace(engines=devices)
    cpu_ms = options.http_ms + options.decode_ms + options.engine_ms
    bound_per_s = min(
        1e3 * min(cores, shape.decoders) / cpu_ms,
        1e3 * settings.http_workers / options.http_ms,  # an event loop is one thread
        devices * min(options.per_s, 1e3 / options.engine_ms),
    )
    low, high = 0, round(1 / STEP)
    while high - low > 1:
        middle = (low + high) // 2
        report = simulate(costs, shape, middle * STEP * bound_per_s, options.requests)
        fails = report.refused + report.expired > MOST_FAILED or 1e3 * report.p99_s > options.p99_ms
        low, high = (low, middle) if fails else (middle, high)
    return low * STEP * bound_per_s


def _costs(cores: int, options: argparse.Namespace) -> Costs:
    # Half of a full batch's time is the batch's own, as for the pretended devices.
    full, image_s = options.max_batch, 1 / (2 * options.per_s)
    sizes = {size: Inference(images_per_s=size / ((full + size) * image_s), cpu_ms=0) for size in (1, full)}
    overhead_ms = options.http_ms + options.engine_ms
    return Costs(cpus=cores, decode_ms=(options.decode_ms,), overhead_ms=overhead_ms, inference=sizes)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="devices.py", description=__doc__)
    parser.add_argument("--cores", type=numbers(int), default=[2, 16, 64], metavar="N,N,…", help="default 2,16,64")
    parser.add_argument("--devices", type=numbers(int), default=[1, 2, 4, 8], metavar="N,N,…", help="default 1,2,4,8")
    parser.add_argument("--per-s", type=float, default=2000, metavar="R", help="images/s of one device (default 2000)")
    parser.add_argument("--http-ms", type=float, default=0.6, metavar="MS", help="of CPU per image (default 0.6)")
    parser.add_argument("--decode-ms", type=float, default=1.6, metavar="MS", help="of CPU per image (default 1.6)")
    parser.add_argument("--engine-ms", type=float, default=0.1, metavar="MS", help="of CPU per image (default 0.1)")
    parser.add_argument("--max-batch", type=int, default=32, metavar="N", help="default 32")
    parser.add_argument("--queue-size", type=int, default=2048, metavar="N", help="default 2048")
    parser.add_argument("--http-workers", type=int, metavar="N", help="if not the server's default")
    parser.add_argument("--p99-ms", type=float, default=100, metavar="MS", help="the limit (default 100)")
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="of each simulation (default 10000)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(command.run(main))
