import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loadtest import capacity
from loadtest.capacity import CapacityError

ROOT = Path(__file__).parents[2]
COSTS = {"cpus": 2, "decode_ms": [2.0], "overhead_ms": 1.0, "inference": {"1": {"images_per_s": 200, "cpu_ms": 7.0}}}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "loadtest" / "capacity.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def limit(decode_ms: float, infer_1: tuple[float, float], infer_8: tuple[float, float]) -> dict[str, Any]:
    paces = {"1": infer_1, "8": infer_8}
    return {
        "cpus": 2,
        "images_per_s": 1.0,
        "decode": {"1": {"cpu_ms": decode_ms}},
        "inference": {size: {"images_per_s": per_s, "cpu_ms": cpu_ms} for size, (per_s, cpu_ms) in paces.items()},
    }


def test_costs_are_the_best_of_the_bench_and_the_rest_is_the_servers() -> None:
    steps = [
        {"images_per_s": 100, "server_cpu_ms": 20.0, "mean_batch": 1.0},
        {"images_per_s": 150, "server_cpu_ms": 12.0, "mean_batch": 4.5},
    ]
    bench = {"limits": [limit(3.0, (90, 8.0), (150, 7.0)), None, limit(2.0, (100, 6.0), (120, 9.0))], "steps": steps}
    assert capacity.costs_of(bench) == {
        "cpus": 2,
        "decode_ms": [2.0],
        "overhead_ms": pytest.approx(12.0 - 2.0 - 6.5),
        "inference": {"1": {"images_per_s": 100, "cpu_ms": 6.0}, "8": {"images_per_s": 150, "cpu_ms": 7.0}},
    }


def test_the_bound_is_the_cpus_or_the_device() -> None:
    assert capacity.bound_per_s(COSTS) == pytest.approx(200)
    gpu = COSTS | {"cpus": 16, "inference": {"1": {"images_per_s": 3000, "cpu_ms": 0}}}
    assert capacity.bound_per_s(gpu) == pytest.approx(3000)


@pytest.mark.parametrize("wanted", [1, 2, 7, 100])
@pytest.mark.parametrize("first", [1, 9, 120])
def test_the_least_number_is_found_from_wherever_the_search_begins(wanted: int, first: int) -> None:
    assert capacity.least(lambda number: number >= wanted, first) == wanted


def test_a_target_that_no_number_meets_is_said() -> None:
    with pytest.raises(CapacityError, match="do not meet it"):
        capacity.least(lambda _: False, 1)


def test_machines_are_found_by_simulation(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(json.dumps(COSTS))
    done = run("--costs", path, "--per-s", "500", "--p99-ms", "100", "--balancer", "least-connections")
    assert done.returncode == 0, done.stderr
    assert "so 3 at least would be needed" in done.stdout
    assert "\n4 machines answer 500 requests/s" in done.stdout


def test_what_the_generator_took_is_not_there_for_the_server_that_is_simulated(tmp_path: Path) -> None:
    paths = tmp_path / "costs.json", tmp_path / "overload.json"
    paths[0].write_text(json.dumps(COSTS))
    step = {"offered_per_s": 180, "good": {"per_s": 90}, "accepted": {"p50_ms": 1, "p99_ms": 2}}
    shares = [{"client_share": 0.1, "others_share": 0.0}, {"client_share": 0.4, "others_share": 0.1}]
    steps = [step | {"client_share": 0.0, "others_share": None}, *(step | share for share in shares)]
    paths[1].write_text(json.dumps([{"deadline_ms": 1000, "steps": steps}]))
    done = run("--costs", paths[0], "--check", paths[1])
    assert done.returncode == 0, done.stderr
    _, *rows = (line.split() for line in done.stdout.strip().splitlines())
    simulated = [float(row[2]) for row in rows]
    assert [float(row[1]) for row in rows] == [90, 90, 90]
    assert simulated[0] > simulated[1] > 150
    assert simulated[2] == pytest.approx(100, rel=0.05)  # CPU-seconds a second, of which an image takes 0.01


def test_a_bench_without_limits_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"limits": [null], "steps": []}')
    done = run("--bench", path, "--per-s", "10")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the bench measured no limit")
