"""What `python -m server` prints and returns if it cannot start: one line that says what to do."""

import re
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from server.__main__ import main
from server.settings import read
from tests import tiny
from tests.server.running import PATIENCE_S, ROOT, run_changed, run_server, run_without_engine


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `python -m server` prints about wrong settings before it exits with 2, run in this process."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["python -m server", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())
        assert ended.value.code == 2
        return capsys.readouterr().err.strip()

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "70000"], r"python -m server: port: Input should be less than or equal to 65535"),
        (["--queue-size", "1", "--http-workers", "2"], r"python -m server: .*queue_size 1 is below http_workers 2"),
        (["--timeout-ms", "10", "--max-wait-ms", "20"], r"python -m server: .*max_wait_ms 20 is not below timeout_ms"),
    ],
)
def test_a_wrong_setting_is_one_line(arguments: list[str], line: str, refused: Callable[..., str]) -> None:
    assert re.fullmatch(line + ".*", refused(*arguments))


@pytest.mark.parametrize(
    ("arguments", "exit_code", "line"),
    [
        (["--port", "70000"], 2, r"python -m server: port: Input should be less than or equal to 65535"),
        (
            ["--repository", "nowhere"],
            1,
            r"python -m server: no model in nowhere: \S+ export/to_onnx.py makes one",
        ),
    ],
)
def test_the_process_says_so_and_exits(arguments: list[str], exit_code: int, line: str) -> None:
    code, output = run_server(*arguments)
    assert code == exit_code
    assert re.fullmatch(line + ".*", output)


def test_it_says_which_release_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(sys, "argv", ["python -m server", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"resnet-serving {project['version']}\n"


def test_an_unknown_flag_is_refused(refused: Callable[..., str]) -> None:
    assert "unrecognized arguments: --colour" in refused("--colour", "red")


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    code, output = run_server("--repository", tmp_path, "--models", "tiny,resnet18")
    assert code == 1
    assert re.fullmatch(r"python -m server: model 'resnet18' is not in \S+: \S+ export/to_onnx.py resnet18", output)


def test_a_port_in_use_is_one_line_also_where_it_is_our_own(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        code, output = run_server("--repository", tmp_path, "--port", port)
    assert code == 1
    assert re.fullmatch(
        rf"python -m server: cannot listen on 127.0.0.1 port {port}: .*; choose another --host or --port", output
    )


def test_a_temporary_folder_with_too_long_a_path_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path / "repository")
    folder = tmp_path / ("x" * 100)  # too long for the address of a Unix socket
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    code, output = run_server("--repository", tmp_path / "repository", "--port", "0")
    assert code == 1
    line = output.splitlines()[-1]
    assert line == (
        f"python -m server: TMPDIR {folder} is too long a path for a socket in it; set it to a short one, such as /tmp"
    )


@pytest.mark.parametrize(
    ("room_kib", "line"),  # for one file; the table of API keys' use needs more
    [
        (0, r"cannot make a folder for sockets and metrics: .*No usable temporary directory.*; set TMPDIR"),
        (200, r"no room for the use of API keys in \S+: File too large; set TMPDIR"),
        (500, r"no room for metrics in \S+: File too large; set TMPDIR"),
    ],
)
def test_a_temporary_folder_without_room_is_one_line(
    room_kib: int, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path / "repository")
    keys = tmp_path / "keys"
    keys.write_text(f"one {'0' * 64} concurrent=1\n")
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    command: list[str | Path] = [
        "bash",
        "-c",
        f'ulimit -f {room_kib} && exec "$@"',
        "bash",
        sys.executable,
        "-m",
        "server",
    ]
    command += ["--port", "0", "--repository", tmp_path / "repository", "--api-keys", keys]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert re.fullmatch(f"python -m server: {line}\n", done.stderr)
    assert list(folder.iterdir()) == []


def test_an_engine_that_never_starts_is_given_up(tmp_path: Path) -> None:
    code, output = run_without_engine(tmp_path)
    assert code == 1
    assert output.count("RuntimeError: no engine today") == 3
    assert output.splitlines()[-1].endswith("the engine cannot start; its error is above")


LATE = """
import asyncio
from server.http import worker

listen = worker._Server._listen

async def late(server, sockets):
    while not server.should_exit:  # which the supervisor's end has it do
        await asyncio.sleep(0.01)
    await listen(server, sockets)

worker._Server._listen = late
"""


def test_a_worker_that_is_ready_when_nobody_waits_any_more_ends_without_a_word(tmp_path: Path) -> None:
    code, output = run_changed(tmp_path, LATE, "--providers", "NoneExecutionProvider")
    assert code == 1
    assert "Traceback" not in output
    assert "this ONNX Runtime has no NoneExecutionProvider" in output.splitlines()[-1]


def test_without_any_good_model_it_ends_and_says_why(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    (tmp_path / "tiny/1/model.onnx").write_bytes(b"not a model")
    code, output = run_server("--repository", tmp_path, "--port", "0")
    assert code == 1
    assert "its SHA-256 is not the manifest's; export the model again" in output.splitlines()[-1]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("SERVER_PORT=70000\n", "python -m server: port: Input should be less than or equal to 65535"),
        ("# a comment\nSERVER_COLOUR=red\n", "python -m server: server_colour: Extra inputs are not permitted"),
        ("SERVER_PORT=many", r"python -m server: port: .*valid integer.* \(in \S+\)$"),
        ("SERVER_REPOSITORY=/mod\udce8les", r"python -m server: --env-file \S+: it is not UTF-8"),
        (None, r"python -m server: --env-file \S+: there is no such file"),
    ],
)
def test_a_wrong_env_file_is_one_line(
    content: str | None, line: str, tmp_path: Path, refused: Callable[..., str]
) -> None:
    path = tmp_path / "serving.env"
    if content:
        path.write_text(content, errors="surrogateescape")
    assert re.fullmatch(line + ".*", refused("--env-file", path))


def test_lines_of_other_programs_in_an_env_file_are_left_to_them(tmp_path: Path) -> None:
    path = tmp_path / "serving.env"
    path.write_text("PORT=many\nDATABASE_URL=here\nexport SERVER_MAX_BATCH=3\n")
    assert read(["--env-file", str(path)]).max_batch == 3


def test_flags_win_over_the_environment_and_that_over_the_env_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "serving.env"
    path.write_text("SERVER_REPOSITORY=file\n")
    flags = ["--env-file", str(path)]
    assert read(flags).repository == Path("file")
    monkeypatch.setenv("SERVER_REPOSITORY", "environment")
    assert read(flags).repository == Path("environment")
    assert read([*flags, "--repository", "flag"]).repository == Path("flag")
