import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtest import capacity
from loadtest.command import LoadTestError
from loadtest.results import Baseline, Bench, Overload, OverloadStep, Pace, Step, Times
from loadtest.simulate import Costs, Inference
from tests.loadtest import commands

COSTS = Costs(cpus=2, decode_ms=(2.0,), overhead_ms=1.0, inference={1: Inference(images_per_s=200, cpu_ms=7.0)})


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SIMULATED_REQUESTS", 5000)


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.call(capacity.main, *arguments)


def baseline(decode_ms: float, infer_1: tuple[float, float], infer_8: tuple[float, float]) -> Baseline:
    paces = {1: infer_1, 8: infer_8}
    return Baseline(
        model="m",
        version=1,
        photos=3,
        cpus=2,
        inference_threads=2,
        decode={1: Pace(images_per_s=1.0, cpu_ms=decode_ms)},
        inference={size: Pace(images_per_s=per_s, cpu_ms=cpu_ms) for size, (per_s, cpu_ms) in paces.items()},
        images_per_s=1.0,
        lone_ms=1.0,
    )


def step(images_per_s: float, server_cpu_ms: float, mean_batch: float) -> Step:
    return Step(
        connections=1,
        images=1,
        images_per_s=images_per_s,
        p50_ms=1,
        p95_ms=1,
        p99_ms=1,
        mean_batch=mean_batch,
        server_cpu_ms=server_cpu_ms,
        client_cpu_ms=0.1,
        client_share=0.1,
        server_share=0.8,
        others_share=0.1,
        errors=0,
        faults={},
        share_of_baseline=0.9,
        useful_cpu=0.9,
    )


def overload(shares: Sequence[tuple[float, float | None]]) -> Overload:
    """Steps of the same load; the client and others used these shares of the CPUs."""
    never = Times(per_s=0, p50_ms=None, p99_ms=None)
    right = Times(per_s=90, p50_ms=1, p99_ms=2)
    steps = [
        OverloadStep(
            factor=1,
            offered_per_s=250,
            good=right,
            accepted=right,
            refused=never,
            overdue=never,
            codes={},
            late=0,
            wrong=0,
            lost=0,
            unsent=0,
            sockets=1,
            lateness_p99_ms=0,
            client_share=client,
            server_share=None,
            others_share=others,
        )
        for client, others in shares
    ]
    return Overload(
        command="",
        name="this server",
        model="m",
        photo_kb=1,
        cpus=2,
        deadline_ms=1000,
        seconds=1,
        sockets=1,
        connections=1,
        capacity_per_s=90,
        capacity_afterwards_per_s=90,
        steps=steps,
    )


def test_costs_are_the_best_of_the_bench_and_the_rest_is_the_servers() -> None:
    baselines = [baseline(3.0, (90, 8.0), (150, 7.0)), None, baseline(2.0, (100, 6.0), (120, 9.0))]
    bench = Bench(model="m", photos=3, baselines=baselines, steps=[step(100, 20.0, 1.0), step(150, 12.0, 4.5)])
    costs = capacity.costs_of(bench)
    assert (costs.cpus, costs.decode_ms) == (2, (2.0,))
    assert costs.overhead_ms == pytest.approx(12.0 - 2.0 - 6.5)
    assert costs.inference == {
        1: Inference(images_per_s=100, cpu_ms=6.0),
        8: Inference(images_per_s=150, cpu_ms=7.0),
    }


def test_the_bound_is_the_cpus_or_the_device() -> None:
    assert capacity.bound_per_s(COSTS) == pytest.approx(200)
    gpu = COSTS.model_copy(update={"cpus": 16, "inference": {1: Inference(images_per_s=3000, cpu_ms=0)}})
    assert capacity.bound_per_s(gpu) == pytest.approx(3000)


@pytest.mark.parametrize("wanted", [1, 2, 7, 100])
@pytest.mark.parametrize("first", [1, 9, 120])
def test_the_least_number_is_found_from_wherever_the_search_begins(wanted: int, first: int) -> None:
    assert capacity.least(lambda number: number >= wanted, first) == wanted


def test_a_target_that_no_number_meets_is_said() -> None:
    with pytest.raises(LoadTestError, match="do not meet it"):
        capacity.least(lambda _: False, 1)


def test_machines_are_found_by_simulation(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(COSTS.model_dump_json())
    done = run("--costs", path, "--per-s", "500", "--p99-ms", "30", "--balancer", "least-connections")
    assert done.returncode == 0, done.stderr
    assert "so 3 at least would be needed" in done.stdout
    assert "\n4 machines answer 500 requests/s" in done.stdout


def test_what_the_generator_took_is_not_there_for_the_server_that_is_simulated(tmp_path: Path) -> None:
    paths = tmp_path / "costs.json", tmp_path / "overload.json"
    paths[0].write_text(COSTS.model_dump_json())
    measured = overload([(0.0, None), (0.1, 0.0), (0.4, 0.1)])
    paths[1].write_text(f"[{measured.model_dump_json()}]")
    done = run("--costs", paths[0], "--check", paths[1])
    assert done.returncode == 0, done.stderr
    _, *rows = (line.split() for line in done.stdout.strip().splitlines())
    simulated = [float(row[2]) for row in rows]
    assert [float(row[1]) for row in rows] == [90, 90, 90]
    assert simulated[0] > simulated[1] > 150
    assert simulated[2] == pytest.approx(100, rel=0.05)  # one CPU left, and 0.01 CPU-seconds an image


def test_a_bench_without_baselines_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bench.json"
    path.write_text('{"model": "m", "photos": 3, "baselines": [null], "steps": []}')
    done = run("--bench", path, "--per-s", "10")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the bench measured no baseline")
