import argparse
import asyncio
import re
import signal
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import pytest

from loadtest import command
from loadtest.command import LoadTestError
from loadtest.connection import Connection
from loadtest.photos import FOLDER as PHOTOS
from tests import tiny
from tests.loadtest import commands


@pytest.fixture(autouse=True)
def _handlers() -> Generator[None]:
    """Restore signal handlers, which a command changes for the whole process."""
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for one, handler in before.items():
        signal.signal(one, handler)


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize("error", [LoadTestError("why"), OSError("why"), ValueError("why"), KeyError("why")])
def test_what_is_foreseen_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(raising(error), KeyError) == 1
    assert "why" in (said := capsys.readouterr().err)
    assert (said[:7], said.count("\n")) == ("error: ", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("baseline.py", PHOTOS / "cat.jpg", "--repository"),
        ("capacity.py", "--per-s", "50", "--costs"),
        ("engine.py", "--repository"),
        ("engine_loop.py", "--repository"),
        ("simulate.py", "--per-s", "50"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_wrong_setting_is_one_line(
    arguments: Sequence[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path)
    costs = tmp_path / "costs.json"
    costs.write_text('{"cpus": 1, "decode_ms": [1], "inference": {"1": {"images_per_s": 9, "cpu_ms": 9}}}')
    monkeypatch.setenv("SERVER_MAX_WAIT_MS", "soon")
    done = commands.run(*arguments, tmp_path if arguments[-1] == "--repository" else costs)  # type: ignore[arg-type]
    assert done.returncode == 1
    assert re.fullmatch(r"error: max_wait_ms: .*\(SERVER_MAX_WAIT_MS='soon': .*\)\n", done.stderr)


def test_what_is_not_foreseen_is_a_traceback() -> None:
    with pytest.raises(KeyError):
        command.run(raising(KeyError()))


def test_a_missing_file_and_a_missing_server_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    def connected() -> int:
        asyncio.run(Connection.open("http://127.0.0.1:1/classify"))
        return 0

    assert command.run(lambda: len(Path("none.json").read_text())) == 1
    assert command.run(connected) == 1
    missing, refused = capsys.readouterr().err.splitlines()
    assert missing == "error: none.json: No such file or directory"
    assert refused.startswith("error: 127.0.0.1:1: ")


def test_an_error_without_words_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(raising(TimeoutError())) == 1
    assert "TimeoutError" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_told_to_end_cleans_up(number: signal.Signals) -> None:
    ended = []

    def main() -> int:
        try:
            signal.raise_signal(number)
        finally:
            ended.append(number)
        return 0

    assert command.run(main) == 130
    assert ended == [number]


def test_numbers_and_names_are_lists_of_what_is_known() -> None:
    assert command.numbers(float)("1,2.5") == [1, 2.5]
    assert command.names(["a", "b"])("b,a") == ["b", "a"]
    for wrong in (lambda: command.numbers(int)("1;2"), lambda: command.names(["a"])("c")):
        with pytest.raises(argparse.ArgumentTypeError):
            wrong()
