"""Fixtures shared by several parts of the tests. The export command exports each network once."""

import faulthandler
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from tests import processes

if TYPE_CHECKING:
    from tests.hub import Hub
    from tests.server.running import RunningServer

ROOT = Path(__file__).parents[1]

# How long an example takes to run or to generate depends on the machine.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")

# A shell makes background jobs ignore Ctrl-C; processes that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

END_S, EXIT_S = 5.0, 60.0
"""END_S: grace period in which a timed-out test ends its own processes before they are killed. EXIT_S: how long that
test may take after that, or pytest once all tests have ended, before pytest exits: a hung thread could block it."""
_over = pytest.StashKey[threading.Event]()
_stderr = pytest.StashKey[int]()
"""Descriptor of the standard error that pytest does not capture."""


SLOW_S, SLOWEST_S = 600, 3000
"""Time limits of tests with slow marks, instead of the one in pyproject.toml."""
EXPORTS = {"model_repository", "cifar_repository"}
"""Session fixtures: the first test that uses one waits for its exports, so their tests have the limit of slow ones."""
EXPORTED = "EXPORTED"
"""Environment variable naming a folder in which parallel runs of pytest share what these fixtures export."""


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        fixtures = set(getattr(item, "fixturenames", ()))
        if "timeout" not in marks and (marks & {"slow", "containers", "ray", "programs"} or fixtures & EXPORTS):
            item.add_marker(pytest.mark.timeout(SLOWEST_S if marks & {"containers", "ray"} else SLOW_S))


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    item.stash[_over] = threading.Event()
    watching = item.stash[_over], settings.timeout, item.config.stash[_stderr]
    threading.Thread(target=_watch, args=watching, daemon=True).start()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Tell `_watch` that the test and its fixtures are done; after a failure, pytest-timeout no longer watches them."""
    try:
        return (yield)
    finally:
        if over := item.stash.get(_over, None):
            over.set()


def _watch(over: threading.Event, limit_s: float, stderr: int) -> None:
    """Runs in a thread: kill the processes that a timed-out test may be waiting for."""
    if over.wait(limit_s + END_S):
        return
    processes.end_all()
    if not over.wait(EXIT_S):
        faulthandler.dump_traceback(stderr)
        os._exit(1)


def pytest_unconfigure() -> None:
    faulthandler.dump_traceback_later(EXIT_S, exit=True)


def run_to_onnx(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python export/to_onnx.py` from the repository's root until it ends."""
    command = [sys.executable, ROOT / "export" / "to_onnx.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data and weights beside the project."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return folder


def _exported(name: str, tmp_path_factory: pytest.TempPathFactory, export: Callable[[Path], None]) -> Path:
    """This run's copy of the named repository; the first run that needs the repository exports it."""
    folder = Path(os.environ.get(EXPORTED) or tmp_path_factory.mktemp("exported"))
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).is_dir():
            aside = tmp_path_factory.mktemp(name)
            export(aside)
            shutil.copytree(aside, folder / f"{name}.part", dirs_exist_ok=True)
            (folder / f"{name}.part").rename(folder / name)
    return shutil.copytree(folder / name, tmp_path_factory.mktemp("copies") / name)


@pytest.fixture(scope="session")
def model_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with efficientnet_lite0 version 1."""

    def export(repository: Path) -> None:
        done = run_to_onnx("efficientnet_lite0", "--repository", repository)
        assert done.returncode == 0, done.stderr

    return _exported("model_repository", tmp_path_factory, export)


@pytest.fixture(scope="session")
def cifar_repository(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with the trained cifar_resnet20, 32, 44 and 56, each version 1."""

    def export(repository: Path) -> None:
        from export import to_onnx

        for checkpoint in sorted((shared / "weights" / "cifar10").glob("resnet*.th")):
            name = f"cifar_{checkpoint.name.partition('-')[0]}"
            assert to_onnx.main([name, "--weights", str(checkpoint), "--repository", str(repository)]) == 0

    return _exported("cifar_repository", tmp_path_factory, export)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator["RunningServer"]:
    """Serves `tiny` in versions 1 and 2 (the default), and `other`: shared by all tests that only send requests.

    Tests that change, limit or kill a server, or read its counters, start their own.
    """
    from tests import tiny
    from tests.server.running import RunningServer

    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    tiny.write(repository, version=2)
    tiny.write(repository, "other")
    with RunningServer(repository, default_model="tiny") as running:
        yield running


@pytest.fixture
def no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty Hugging Face Hub cache below `tmp_path`, and no token."""
    from tests import hub

    with hub.away(tmp_path / "hf", monkeypatch):
        yield


@pytest.fixture
def hub_server(no_hub: None, monkeypatch: pytest.MonkeyPatch) -> Iterator["Hub"]:  # noqa: ARG001 it is away from the hub
    """A local server that this process uses as the Hugging Face Hub."""
    from tests import hub

    with hub.running() as server:
        hub.point_at(server.url, monkeypatch)
        yield server
