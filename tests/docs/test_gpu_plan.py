"""Parts are run in order of value, each ends, and none that has a result is run again."""

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import psutil
import pytest

from docs.measurements.gpu import __main__ as gpu
from docs.measurements.gpu import plan
from docs.measurements.gpu.__main__ import Run
from docs.measurements.gpu.meters import Use, bound_by
from docs.measurements.gpu.part import Result
from docs.measurements.gpu.plan import DECODER, ONNX, PARTS, Part
from tests.server.running import until

SCRIPT = Path(__file__).parents[2] / "docs" / "measurements" / "gpu.sh"
EVERYTHING = {ONNX, DECODER}


def names(parts: list[Part]) -> list[str]:
    return [part.name for part in parts]


def test_the_plan_in_the_scripts_head_is_the_one_that_is_run() -> None:
    assert "".join(f"# {line}\n" for line in plan.table().splitlines()) in SCRIPT.read_text()


def test_right_comes_before_safe_before_the_service_before_engines_before_the_cpus() -> None:
    order = names(list(PARTS))
    assert [name for name in order if name in ("right", "safe", "service", "engines", "cores")] == [
        "right",
        "safe",
        "service",
        "engines",
        "cores",
    ]


def test_all_parts_but_the_last_fit_into_fifteen_minutes_with_the_start_and_seven_folders() -> None:
    assert sum(part.seconds for part in PARTS[:-1]) <= 15 * 60 - 90 - 125
    assert all(part.seconds < part.limit_s for part in PARTS)


def test_a_name_stands_for_its_variants() -> None:
    ready, _ = plan.choose(("right", "service"), (), EVERYTHING)
    chosen = ["right", "service", "right-onnx", "service-onnx", "service-decoder"]
    assert [name for name in names(ready) if not name.startswith("build")] == chosen
    with pytest.raises(ValueError, match="no part nonsense, but machine, build"):
        plan.choose(("right", "nonsense"), (), ())


def test_parts_that_make_models_come_along_where_they_have_no_result() -> None:
    assert names(plan.choose(("service",), (), ())[0]) == ["build", "service"]
    assert names(plan.choose(("engines-compiled",), (), ())[0]) == ["build", "build-rest", "engines-compiled"]
    assert names(plan.choose(("engines",), ("build",), ())[0]) == ["build-rest", "engines", "engines-compiled"]
    assert names(plan.choose(("service",), [part.name for part in PARTS], ())[0]) == []
    assert names(plan.choose(("cores",), ("build", "build-rest"), ())[0]) == ["cores"]


def test_what_has_its_result_is_not_run_again() -> None:
    ready, waiting = plan.choose((), [part.name for part in PARTS if part.name != "safe"], EVERYTHING)
    assert (names(ready), waiting) == (["safe"], {})


def test_what_needs_a_package_waits_for_it() -> None:
    ready, waiting = plan.choose(("right",), ("build", "build-rest"), ())
    assert names(ready) == ["right"]
    assert waiting == {"right-onnx": "waits for onnxruntime-gpu"}


def test_a_part_begins_only_if_it_can_end() -> None:
    part = Part("one", 10, 30, "nothing", "nothing")
    assert plan.fits(part, 100) == 30
    assert plan.fits(part, 12) == 12
    assert plan.fits(part, 9) is None


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "work", Path(sys.executable), rehearse=False, results=tmp_path / "results")


def run_program(run: Run, program: str, limit_s: float = 60) -> str:
    run.folder.mkdir(exist_ok=True)
    return gpu.run_part(run, PARTS[0], limit_s, lambda *_: [sys.executable, "-c", program, str(run.folder)])


ROWS = "import sys, pathlib; pathlib.Path(sys.argv[1], 'machine.rows.json').write_text('{\"rows\": [1]}')"


def test_a_part_that_fails_has_its_verdict_and_what_it_measured_until_then(run: Run) -> None:
    assert run_program(run, f"{ROWS}; print('no such thing'); sys.exit(3)") == "failed"
    done = run.done()["machine"]
    assert (done["verdict"], done["rows"]) == ("failed", [1])
    assert (run.folder / "machine.log").read_text() == "no such thing\n"


def test_a_part_that_takes_too_long_is_ended_with_all_that_it_started(run: Run) -> None:
    program = f"{ROWS}; import signal, subprocess, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    program += "child = subprocess.Popen(['sleep', '1000']); print(child.pid, flush=True); time.sleep(1000)"
    gpu_grace, gpu.GRACE_S = gpu.GRACE_S, 0.01
    try:
        assert run_program(run, program, limit_s=3) == "out of time"
    finally:
        gpu.GRACE_S = gpu_grace
    assert run.done()["machine"]["rows"] == [1]
    child = int((run.folder / "machine.log").read_text())
    psutil.wait_procs([psutil.Process(child)] if psutil.pid_exists(child) else [], timeout=30)
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_run_that_is_ended_takes_its_part_along_and_leaves_no_result(tmp_path: Path) -> None:
    program = """
import signal, sys
from pathlib import Path
from docs.measurements.gpu import __main__ as gpu, plan
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
run = gpu.Run(Path(sys.argv[1]), Path(sys.executable), True, None)
sleeper = "import os, time; os.write(1, str(os.getpid()).encode()); time.sleep(1000)"
gpu.run_part(run, plan.PARTS[0], 1000, lambda *_: [sys.executable, "-c", sleeper])
"""
    log = tmp_path / "machine.log"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], cwd=SCRIPT.parents[2])
    try:
        until(lambda: log.exists() and log.read_text().isdigit())
        part = psutil.Process(int(log.read_text()))
        process.terminate()
        assert process.wait(60) == 1
        assert not part.is_running()
        assert not (tmp_path / "machine.json").exists()
    finally:
        process.kill()


def test_results_and_logs_are_where_they_are_wanted_after_every_part(run: Run) -> None:
    run_program(run, "print('done')")
    gpu.publish(run)
    assert run.results
    assert json.loads((run.results / gpu.RESULTS).read_text())["machine"]["verdict"] == "passed"
    with tarfile.open(run.results / gpu.LOGS) as archive:
        assert archive.getnames() == ["machine.log"]
    assert sorted(path.name for path in run.results.iterdir()) == [
        gpu.LOGS,
        gpu.RESULTS,
    ]  # few files: some machines return only a few


def test_the_summary_names_the_checks_that_failed() -> None:
    result = {"verdict": "failed", "seconds": 1.0, "checks": {"one": "ok: fine", "two": "ValueError: no"}}
    assert gpu.summary({"right": result}) == "✗ right: failed, 1.0 s\n    two: ValueError: no"


def test_a_check_that_fails_does_not_keep_the_next_from_being_done(tmp_path: Path) -> None:
    result = Result(tmp_path / "rows.json")

    def fail() -> str:
        raise LookupError("nothing there")

    result.check("first", fail)
    result.check("second", lambda: "fine")
    written = json.loads((tmp_path / "rows.json").read_text())["checks"]
    assert written["first"].startswith("LookupError: nothing there")
    assert written["second"].startswith("ok: fine")
    assert result.exit_code() == 1


IDLE: dict[str, Any] = {
    "cpus": 16,
    "cpu_s": {"engine": 1.0, "http": 2.0, "sender": 1.0},
    "machine_busy": 0.3,
    "gpu_busy": 0.2,
    "senders": 4,
    "http_workers": 8,
    "engines": 1,
    "seconds": 3.0,
}


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gpu_busy": 0.95}, "the GPU"),
        ({"cpu_s": {"engine": 1.0, "http": 2.0, "sender": 11.9}}, "the load generator's processes"),
        (
            {"machine_busy": 0.97, "cpu_s": {"engine": 3.0, "http": 30.0, "sender": 5.0}},
            "the CPUs, most of them for http",
        ),
        ({"cpu_s": {"engine": 2.9, "http": 2.0, "sender": 1.0}}, "the engine process"),
        ({"cpu_s": {"engine": 1.0, "http": 23.0, "sender": 1.0}}, "the HTTP workers' interpreters"),
        ({}, "nothing that is busy: waiting for each other"),
        (
            {"gpu_busy": None, "cpu_s": {"engine": 20.0, "http": 2.0, "sender": 1.0}},
            "nothing that is busy: waiting for each other",
        ),
        ({"gpu_busy": None}, "nothing that is busy: waiting for each other"),
    ],
)
def test_what_bounds_the_service_is_what_is_busy(changes: dict[str, Any], what: str) -> None:
    assert bound_by(Use(**(IDLE | changes))) == what
