"""The simulation, against queueing theory and against what only the real scheduler does."""

import json
import math
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest

from loadtest.simulate import Balancer, Costs, Dispatch, Inference, Report, Shape, simulate
from server.engine.scheduler import Limits, Scheduler
from server.settings import Settings
from tests.loadtest import commands

NOTHING = 1e-6  # milliseconds: practically free
SERVICE_S = 0.01
ENDLESS = Limits(max_batch=1, max_wait_s=0.0, queue_size=10**9)


def device(images_per_s: float, limits: Limits = ENDLESS, timeout_s: float = 1e9) -> tuple[Costs, Shape]:
    """The only cost is inference, of 1 / `images_per_s` seconds for each image in batches of any size."""
    sizes = {size: Inference(images_per_s=images_per_s, cpu_ms=0) for size in (1, limits.max_batch)}
    return Costs(cpus=64, decode_ms=(NOTHING,), inference=sizes), Shape(limits, timeout_s, 64)


@pytest.mark.parametrize("load", [0.3, 0.5, 0.7])
def test_one_instance_without_batches_waits_as_the_m_d_1_queue(load: float) -> None:
    costs, shape = device(1 / SERVICE_S)
    report = simulate(costs, shape, load / SERVICE_S, 10_000)
    wait_s = load * SERVICE_S / (2 * (1 - load))  # Pollaczek and Khinchine
    assert report.mean_s - SERVICE_S == pytest.approx(wait_s, rel=0.1)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.5), (4, 0.7)])
def test_decoders_with_exponential_times_wait_as_the_m_m_c_queue(servers: int, load: float) -> None:
    quantiles = 4000
    times_ms = tuple(-1e3 * SERVICE_S * math.log((n + 0.5) / quantiles) for n in range(quantiles))
    costs = Costs(cpus=servers, decode_ms=times_ms, inference={1: Inference(images_per_s=1e9, cpu_ms=0)})
    report = simulate(costs, Shape(ENDLESS, 1e9, servers), servers * load / SERVICE_S, 10_000)
    offered = servers * load
    waiting = offered**servers / math.factorial(servers) / (1 - load)
    erlang_c = waiting / (sum(offered**n / math.factorial(n) for n in range(servers)) + waiting)
    wait_s = erlang_c * SERVICE_S / (servers * (1 - load))
    assert report.mean_s - SERVICE_S == pytest.approx(wait_s, rel=0.1)


def test_random_balancing_makes_each_machine_an_m_d_1_queue_and_others_are_better() -> None:
    costs, shape = device(1 / SERVICE_S)

    def wait_s(balancer: Balancer) -> float:
        return simulate(costs, shape, 10 * 0.7 / SERVICE_S, 12_000, 10, balancer).mean_s - SERVICE_S

    at_random = wait_s("random")
    assert at_random == pytest.approx(0.7 * SERVICE_S / (2 * (1 - 0.7)), rel=0.1)
    assert max(wait_s("least-connections"), wait_s("round-robin")) < at_random / 4


def test_work_on_shared_cpus_slows_down_and_none_is_lost() -> None:
    costs = Costs(cpus=1, decode_ms=(5.0,), inference={1: Inference(images_per_s=200, cpu_ms=5)})
    report = simulate(costs, Shape(ENDLESS, 1e9, 4), 80, 8_000)
    assert report.busy == pytest.approx(80 * (0.005 + 0.005), rel=0.02)
    assert report.good_per_s == pytest.approx(report.offered_per_s)
    assert report.mean_s > 0.01


def test_a_machine_is_set_up_as_the_servers_settings_say() -> None:
    settings = Settings(max_batch=4, http_workers=3, decode_threads=2, inference_threads=4, instances=3)
    on_cpus = Costs(cpus=4, decode_ms=(1.0,), inference={1: Inference(images_per_s=100, cpu_ms=20)})
    shape = Shape.of(settings, on_cpus)
    assert (shape.limits.max_batch, shape.decoders, shape.instances, shape.engines) == (4, 6, 3, 1)
    one_thread = settings.model_copy(update={"inference_threads": 1})
    assert Shape.of(one_thread, on_cpus).instances == 1
    assert Shape.of(settings, device(100)[0]).instances == 1


def run_overloaded(limits: Limits, timeout_s: float) -> Report:
    costs, shape = device(100, limits, timeout_s)
    return simulate(costs, shape, 300, 9_000)


def test_it_drives_the_scheduler_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    largest = 0
    take = Scheduler.take

    def watched(*arguments: Any, **options: Any) -> object:
        nonlocal largest
        taken = take(*arguments, **options)
        largest = max(largest, len(taken.batch))
        return taken

    monkeypatch.setattr(Scheduler, "take", watched)
    sizes = {1: Inference(images_per_s=100, cpu_ms=0), 4: Inference(images_per_s=200, cpu_ms=0)}
    costs = Costs(cpus=64, decode_ms=(NOTHING,), inference=sizes)
    report = simulate(costs, Shape(Limits(4, 0.0, 16), 10.0, 64), 300, 9_000)
    assert largest == 4
    assert report.mean_batch == pytest.approx(4, abs=0.2)
    assert report.good_per_s == pytest.approx(200, rel=0.05)


def test_what_finds_no_place_or_would_be_too_late_is_refused() -> None:
    full = run_overloaded(Limits(1, 0.0, 10), timeout_s=10.0)
    assert full.good_per_s == pytest.approx(100, rel=0.02)
    assert full.refused == pytest.approx(2 / 3, abs=0.03)
    assert full.expired == 0
    impatient = run_overloaded(Limits(1, 0.0, 10**6), timeout_s=0.1)
    assert impatient.refused + impatient.expired == pytest.approx(2 / 3, abs=0.1)
    assert impatient.refused > 0.5
    assert impatient.p99_s <= 0.1


def test_the_same_seed_gives_the_same_report() -> None:
    costs, shape = device(100, Limits(4, 0.0, 16), timeout_s=0.05)
    assert simulate(costs, shape, 300, 2_000) == simulate(costs, shape, 300, 2_000)
    assert simulate(costs, shape, 300, 2_000, seed=1) != simulate(costs, shape, 300, 2_000)


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.run("simulate.py", *arguments)


def test_command_prints_a_report(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text('{"cpus": 2, "decode_ms": [2, 4], "inference": {"1": {"images_per_s": 200, "cpu_ms": 6}}}')
    done = command(path, "--per-s", "50", "--machines", "2", "--balancer", "least-connections")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["machines"], report["refused"]) == (2, 0)
    assert 0.007 < report["p50_s"] < report["p99_s"]


@pytest.mark.parametrize("content", ["{}", "?", '{"cpus": 0}'])
def test_wrong_costs_are_one_line(content: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_text(content)
    done = command(path, "--per-s", "50")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("dispatch", get_args(Dispatch))
def test_devices_behind_one_queue_each_serve_all_that_comes(dispatch: Dispatch) -> None:
    costs, shape = device(1 / SERVICE_S)
    report = simulate(costs, shape._replace(engines=4, dispatch=dispatch), 4 * 0.5 / SERVICE_S, 4_000)
    assert (report.refused, report.expired) == (0, 0)
    assert report.devices_busy == pytest.approx(0.5, rel=0.1)


def test_a_slow_device_gets_less() -> None:
    costs, shape = device(1 / SERVICE_S)
    shape = shape._replace(engines=4, last_takes=3.0)
    load = 0.7 * (3 + 1 / 3) / SERVICE_S
    ours, in_turns = (
        simulate(costs, shape._replace(dispatch=rule), load, 4_000) for rule in ("least-work", "round-robin")
    )
    assert ours.p99_s < in_turns.p99_s / 4
