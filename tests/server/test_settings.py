"""Settings from the command line and the environment, as `python -m server` reads them."""

import os
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from pydantic import ValidationError

import server.__main__
from server.settings import Settings

Read = Callable[..., Settings]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("SERVER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Settings from these flags and these environment variables only."""

    def read(*flags: str, **environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return Settings(_cli_parse_args=list(flags))

    return read


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `python -m server` prints about wrong settings, when it refuses to start."""

    def refuse(*flags: str, **environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["python -m server", *flags])
        assert server.__main__.main() == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    return refuse


def test_every_setting_has_a_default(read: Read) -> None:
    settings = read()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)  # not reachable from elsewhere unless asked for
    assert (settings.models, settings.providers) == ((), ("CPUExecutionProvider",))
    assert settings.max_wait_ms == 0


def test_flags_and_environment_say_the_same(read: Read) -> None:
    flags = ["--max-batch", "3", "--max-wait-ms", "1.5", "--repository", "/r", "--default-model", "a"]
    by_flags = read(*flags)
    environment = {"MAX_BATCH": "3", "MAX_WAIT_MS": "1.5", "REPOSITORY": "/r", "DEFAULT_MODEL": "a"}
    by_environment = read(**{f"SERVER_{name}": value for name, value in environment.items()})
    assert by_flags == by_environment
    assert (by_flags.max_batch, by_flags.max_wait_ms, by_flags.repository) == (3, 1.5, Path("/r"))


def test_flags_win(read: Read) -> None:
    assert read("--max-batch=5", SERVER_MAX_BATCH="7", SERVER_PORT="1").max_batch == 5
    assert read("--max-batch=5").port == 1


def test_an_empty_variable_counts_as_none(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    without = read()
    for name in ("GRPC_PORT", "MODELS", "REPOSITORY"):
        monkeypatch.setenv(f"SERVER_{name}", "")
    assert server.settings.read([]) == without
    monkeypatch.setenv("SERVER_CORS_ORIGINS", "https://a.example")
    assert server.settings.read(["--cors-origins", ""]).cors_origins == ()  # a flag wins in any case


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a", ("a",)), ("a,b", ("a", "b")), ("a,,b,", ("a", "b")), (" a, b ", ("a", "b")), ("", ())],
)
def test_lists_are_separated_by_commas(read: Read, text: str, expected: tuple[str, ...]) -> None:
    assert read(f"--models={text}").models == expected
    assert read(SERVER_MODELS=text).models == expected


def test_the_order_of_providers_is_kept(read: Read) -> None:
    expected = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert read("--providers", ",".join(expected)).providers == expected
    assert read("--providers", expected[0], "--providers", expected[1]).providers == expected


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max-batch", "0"], ["max_batch", "greater than or equal to 1"]),
        (["--max-batch", "many"], ["max_batch", "integer"]),
        (["--max-wait-ms", "-1"], ["max_wait_ms"]),
        (["--max-wait-ms", "nan"], ["max_wait_ms"]),
        (["--timeout-ms", "0"], ["timeout_ms", "greater than 0"]),
        (["--timeout-ms", "inf"], ["timeout_ms"]),
        (["--port", "65536"], ["port"]),
        (["--host", ""], ["host", "at least 1 character"]),  # `--host "$HOST"` without HOST; else every address
        (["--models", "../etc"], ["models.0", "pattern"]),
        (["--default-model", "A B"], ["default_model", "pattern"]),
        (["--log-level", "loud"], ["log_level", "'debug', 'info'"]),
        (["--memory-budget", "4,5GiB"], ["memory_budget", "'4,5GiB' is not a size", "4GiB"]),
        (["--memory-budget", "4Gi"], ["memory_budget", "'4Gi' is not a size"]),
        (["--cors-origins", "https://a.example,b.example"], ["cors_origins.1", "'b.example' is not an origin"]),
        (["--cors-origins", "https://a.example/"], ["cors_origins.0", "https://page.example"]),
        (["--http-workers", "9", "--queue-size", "8"], ["queue_size 8", "http_workers 9"]),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_setting(
    refuse: Callable[..., str], flags: list[str], words: list[str]
) -> None:
    printed = refuse(*flags)
    assert printed.startswith("python -m server: ")
    assert printed.count("\n") == 1
    assert all(word in printed for word in words), printed
    assert ": :" not in printed


def test_a_wrong_value_in_the_environment_is_one_line_too(refuse: Callable[..., str]) -> None:
    printed = refuse(SERVER_MAX_BATCH="lots")
    assert printed.startswith("python -m server: max_batch: ")
    assert printed.count("\n") == 1
    assert "SERVER_MAX_BATCH='lots'" in printed


@pytest.mark.parametrize(("variable", "service"), [("SERVER_PORT", "'server'"), ("SERVER_GRPC_PORT", "'server-grpc'")])
def test_a_variable_that_kubernetes_sets_is_named_with_what_to_do(
    refuse: Callable[..., str], read: Read, variable: str, service: str
) -> None:
    printed = refuse(**{variable: "tcp://10.96.0.7:80"})
    assert printed.count("\n") == 1
    for words in (f"{variable}='tcp://10.96.0.7:80'", f"a Service named {service}", "enableServiceLinks: false"):
        assert words in printed
    assert (read("--port=1", "--grpc-port=1").port) == 1  # a flag wins


def test_a_wrong_flag_is_not_put_down_to_the_variable_that_it_overrides(refuse: Callable[..., str]) -> None:
    assert "SERVER_PORT" not in refuse("--port", "many", SERVER_PORT="80")


@pytest.mark.parametrize("flags", [["--max-bach", "3"], ["--max_batch", "3"], ["surplus"], ["--max-batch"]])
def test_unknown_and_incomplete_flags_are_rejected(
    read: Read, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        read(*flags)
    assert ended.value.code == 2
    assert "python -m server: error:" in capsys.readouterr().err


def test_help_explains_every_setting(read: Read, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read("--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    for name, field in Settings.model_fields.items():
        assert f"--{name.replace('_', '-')}" in printed
        assert field.description
    assert "--grpc-port int" in printed  # not {int,None}: None is how Python says that it is not given


def test_settings_are_frozen(read: Read) -> None:
    settings = read()
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_batch = 2  # type: ignore[misc]


def test_the_queue_is_divided_among_the_workers_and_never_exceeded(read: Read) -> None:
    settings = read("--queue-size", "10", "--http-workers", "4")
    assert settings.slots_per_worker == 2


@pytest.mark.parametrize(
    ("cpus", "workers", "threads"), [(1, 1, 1), (2, 2, 1), (3, 2, 1), (4, 2, 2), (16, 8, 2), (32, 8, 4), (256, 8, 4)]
)
def test_decoding_is_shared_out_to_the_cpus(read: Read, cpus: int, workers: int, threads: int) -> None:
    with mock.patch("server.settings.available_cpus", return_value=cpus):
        settings = read()
        assert (settings.http_workers, settings.decode_threads) == (workers, threads)
        assert read("--http-workers", "1").decode_threads == min(cpus, 4)
        assert read("--queue-size", "1").http_workers == 1
