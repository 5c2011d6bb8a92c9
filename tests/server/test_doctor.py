"""`python -m server doctor`, on this machine and with settings that cannot work."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.doctor import main, redacted
from tests import tiny
from tests.server.running import PATIENCE_S, ROOT


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model, one with another file than its manifest's, and one without a usable manifest."""
    folder = tmp_path_factory.mktemp("repository")
    tiny.write(folder)
    tiny.write(folder, "tampered")
    (folder / "tampered/1/model.onnx").write_bytes(b"")
    tiny.write(folder, "garbled")
    (folder / "garbled/1/manifest.json").write_text("{")
    return folder


class Doctor:
    """Runs it in this process, which has already imported what it needs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def text(self, exit_code: int, *flags: object, **environment: str) -> str:
        self._monkeypatch.setattr("tempfile.tempdir", None)
        for name, value in environment.items():
            self._monkeypatch.setenv(name, value)
        assert main(list(map(str, flags))) == exit_code
        return self._capsys.readouterr().out

    def report(self, exit_code: int, *flags: object, **environment: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.text(exit_code, "--json", "--port", "0", *flags, **environment))
        return found


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Doctor:
    return Doctor(monkeypatch, capsys)


def test_it_tells_versions_machine_settings_and_models(doctor: Doctor, repository: Path) -> None:
    report = doctor.report(0, "--repository", repository, "--max-batch", 3)
    sections = report["sections"]
    assert sections["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert sections["versions"]["libjpeg_turbo"]
    assert "CPUExecutionProvider" in sections["runtimes"]["onnxruntime providers"]
    assert sections["cpu"]["affinity"] == sorted(os.sched_getaffinity(0))
    assert sections["settings"]["max_batch"] == 3
    assert list(sections["repository"]["models"]) == ["tiny version 1"]
    assert set(sections["repository"]["refused"]) == {"tampered version 1", "garbled version 1"}
    assert "SHA-256" in sections["repository"]["refused"]["tampered version 1"]
    assert [name for name, section in sections.items() if "cannot be told" in section] == []
    assert {problem["stops"] for problem in report["problems"]} == {False}


def test_the_text_is_for_people(repository: Path) -> None:
    command = [sys.executable, "-m", "server", "doctor", "--repository", str(repository), "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert {"versions", "cpu", "settings", "repository", "  max_batch: 8"} <= set(lines)
    assert "tampered version 1 is not served: " in done.stdout


@pytest.mark.parametrize(
    ("flags", "what", "advice"),
    [
        (["--repository", "nowhere"], "no model in nowhere", "python export/to_onnx.py makes one"),
        (["--models", "tiny,other"], "model 'other' is not in", "export/to_onnx.py other"),
        (["--models", "tampered"], "no model can be served", "makes one"),
        (["--queue-size", "65536", "--max-batch", "1"], "65536 requests need", "--shm-size"),
        (["--providers", "NoneExecutionProvider"], "no NoneExecutionProvider here", "CPUExecutionProvider"),
    ],
)
def test_what_would_stop_the_server_is_named_with_what_to_do(
    doctor: Doctor, repository: Path, tmp_path: Path, flags: list[str], what: str, advice: str
) -> None:
    if "--queue-size" in flags:  # larger than the memory of any machine
        tiny.write(tmp_path, crop=4096)
        repository = tmp_path
    report = doctor.report(1, "--repository", repository, *flags)
    stopping = [problem for problem in report["problems"] if problem["stops"]]
    assert any(what in problem["what"] and advice in problem["advice"] for problem in stopping), stopping


@pytest.mark.parametrize(("host", "others"), [("127.0.0.1", "127.0.0.1"), ("::", "0.0.0.0")])
def test_a_port_in_use_is_named(doctor: Doctor, repository: Path, host: str, others: str) -> None:
    if host == "::" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server((others, 0)) as taken:
        port = taken.getsockname()[1]
        printed = doctor.text(1, "--repository", repository, "--host", host, "--port", port)
    assert f"STOPS IT: cannot listen on {host} port {port}: Address already in use" in printed


@pytest.mark.parametrize(("soft", "hard", "needed"), [(256, 4096, []), (1024, 1024, ["2304"])])
def test_only_what_the_system_forbids_counts_as_too_few_open_files(
    doctor: Doctor, repository: Path, monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, needed: list[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (soft, hard))
    problems = " ".join(problem["what"] for problem in doctor.report(0, "--repository", repository)["problems"])
    assert re.findall(r"only 1024 files may be open .* max_connections takes (\d+)", problems) == needed
    assert ("files may be open" in problems) is bool(needed)


def test_a_folder_that_is_too_deep_for_sockets_is_named(doctor: Doctor, repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    report = doctor.report(1, "--repository", repository, TMPDIR=str(folder))
    (problem,) = [problem for problem in report["problems"] if problem["stops"]]
    assert "too long a path for a socket" in problem["what"]


def test_a_model_for_another_cpu_is_named(doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write(tmp_path)
    tiny.quantised_for(tmp_path, "x86-vnni")
    monkeypatch.setattr("server.cpus.flags", lambda: {"sse2"})
    report = doctor.report(0, "--repository", tmp_path)
    assert [problem["what"] for problem in report["problems"]] == [
        f"tiny-int8 version 1 is not served: {report['sections']['repository']['refused']['tiny-int8 version 1']}"
    ]
    assert "quantised for CPUs with VNNI" in report["problems"][0]["what"]


def test_a_model_for_another_backend_is_named(doctor: Doctor, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    tiny.quantised_for(tmp_path, "x86", bound_to="openvino")
    report = doctor.report(0, "--repository", tmp_path, "--backend", "onnx")
    (problem,) = report["problems"]
    assert "tiny-int8 version 1 is not served: it is made for openvino" in problem["what"]


def test_no_secret_is_told(doctor: Doctor, repository: Path) -> None:
    flags = ["--otlp-endpoint", "http://me:hidden@host:4318"]
    flags += ["--repository", str(repository), "--port", "0"]
    printed = doctor.text(0, *flags, OTEL_EXPORTER_OTLP_HEADERS="api-key=hidden")
    assert "http://***@host:4318" in printed
    assert "OTEL_EXPORTER_OTLP_HEADERS: ***" in printed
    assert "hidden" not in printed


def test_a_file_of_secrets_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("")
    assert redacted("tls_key", str(path)) == str(path)
    assert redacted("tls_key", "MIIE") == "***"


def test_wrong_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--max-batch", "0"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert printed.err.startswith("python -m server doctor: max_batch: ")
