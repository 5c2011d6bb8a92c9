"""What all commands of the export print before they start, and when they are interrupted."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from export import calibrate, cascade, console, ensemble, interrupts, quantize, to_onnx, to_torch, to_trt, verify
from export.backends import BackendError
from export.samples import PHOTOS
from tests import tiny
from tests.conftest import ROOT

INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
IN_A_CALLBACK = """
class Held:
    def __del__(self):
        import os, signal
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(100):
            pass  # what is raised here is printed, and forgotten
Held()
"""


@pytest.mark.parametrize(
    ("imported", "code", "end"),
    [
        (INTERRUPT, 130, "interrupted\n"),
        (IN_A_CALLBACK, 130, "interrupted\n"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero\n"),
    ],
    ids=["interrupt", "interrupt of a callback", "bug"],
)
def test_only_an_interrupt_of_the_imports_is_one_line(tmp_path: Path, imported: str, code: int, end: str) -> None:
    (tmp_path / "rich.py").write_text(imported)
    done = subprocess.run(
        [sys.executable, ROOT / "export" / "verify.py", "mine"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code
    assert done.stderr == end if code == 130 else done.stderr.endswith(end)


@pytest.mark.parametrize(
    ("main", "option", "value", "wanted"),
    [
        (verify.main, "--threads", "0", "number of threads from 1 to 1024"),
        (verify.main, "--seconds", "-1", "number of seconds"),
        (verify.main, "--seconds", "inf", "number of seconds"),
        (verify.main, "--batch-sizes", "0", "batch size from 1 to 1024"),
        (quantize.main, "--min-agreement", "nan", "percentage from 0 to 100"),
        (cascade.main, "--min-agreement", "101", "percentage from 0 to 100"),
        (calibrate.main, "--keep-known", "100", "percentage above 0 and below 100"),
        (calibrate.main, "--temperature", "0", "temperature from 0.01 to 100"),
        (to_trt.main, "--max-batch", "many", "batch size from 1 to 1024"),
    ],
)
def test_a_number_that_makes_no_sense_is_said(
    main: Callable[[list[str]], int], option: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["model", f"{option}={value}"])
    assert raised.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {value} is no {wanted}\n")


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def be_told_otherwise() -> None:
    """Fail like a backend that needs an extension whose import was interrupted."""
    try:
        interrupt()
    except KeyboardInterrupt as cause:
        raise BackendError("initialization failed") from cause


@pytest.mark.parametrize("work", [interrupt, be_told_otherwise])
def test_interrupt_while_a_command_works_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], work: Callable[[], None]
) -> None:
    monkeypatch.setattr("export.convert.to_onnx", lambda *_: work())
    assert to_onnx.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path / "repository")]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert not (tmp_path / "repository").exists()


def test_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "mine.pth")

    monkeypatch.setattr("export.convert.to_onnx", refuse)
    assert to_onnx.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: mine.pth: Permission denied\n"


@pytest.mark.parametrize(("images", "reason"), [("none", "No such file or directory"), ("file", "Not a directory")])
def test_folder_of_images_that_is_none_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: str, reason: str
) -> None:
    tiny.write(tmp_path)
    (tmp_path / "file").touch()
    assert verify.main(["tiny", "--repository", str(tmp_path), "--images", str(tmp_path / images)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/{images}: {reason}\n"


def test_error_that_is_its_own_cause_is_no_interrupt() -> None:
    error = ValueError()
    error.__cause__ = error
    assert not interrupts.is_behind(error)


def test_noted_interrupt_is_raised_after_the_work() -> None:
    seen: list[bool] = []

    def work() -> None:
        with interrupts.noted() as interrupted:
            seen.append(interrupted.is_set())
            interrupt()
            seen.append(interrupted.is_set())

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [False, True]


def test_repository_that_cannot_be_written_is_told_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "repository").touch()
    makers = {"convert.to_onnx", "convert.to_program", "averaging.measure", "engine.build"}
    for maker in makers:
        monkeypatch.setattr(f"export.{maker}", lambda *_: pytest.fail("something was made"))
    folder = ["--repository", str(tmp_path / "repository")]
    for main, arguments in (
        (to_onnx.main, ["cifar_resnet20", "--random-weights"]),
        (to_torch.main, ["cifar_resnet20", "--random-weights"]),
        (quantize.main, ["efficientnet_lite0", "--precision", "fp16"]),
    ):
        assert main([*arguments, *folder]) == 1
        assert capsys.readouterr().err == f"error: {tmp_path}/repository cannot be written: Not a directory\n"


def test_ensemble_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_ensemble(tmp_path, "both", [tiny.write(tmp_path, "one"), tiny.write(tmp_path, "two")])
    for main, arguments in (
        (verify.main, ["both"]),
        (quantize.main, ["both", "--calibration", str(PHOTOS)]),
        (to_trt.main, ["both", "--target", "sm89"]),
        (ensemble.main, ["more", "both", "one"]),
    ):
        assert main([*arguments, "--repository", str(tmp_path)]) == 1
        assert capsys.readouterr().err == "error: both is an ensemble: name one of its members, one, two\n"


def test_version_that_comes_before_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_ensemble(tmp_path, "cifar_resnet20", [tiny.write(tmp_path, "one"), tiny.write(tmp_path, "two")])
    (tmp_path / "photos").mkdir()
    arguments = ["cifar_resnet20", "--random-weights", "--check-images", str(tmp_path / "photos")]
    assert to_onnx.main([*arguments, "--repository", str(tmp_path)]) == 1
    assert "cifar_resnet20 has version 1 already, an ensemble: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "assumed"),
    [((), True), (("--num-classes", "10"), False), (("--labels", "labels.txt"), False)],
    ids=["nothing", "a number", "labels"],
)
def test_names_that_are_assumed_of_classes_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    assumed: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({}, "mine.pth")
    Path("labels.txt").write_text("\n".join("abcdefghij"))
    assert to_onnx.main(["cifar_resnet20", "--weights", "mine.pth", *options]) == 1
    told = "10 classes (docs/guides/own_model.md): airplane to truck, as those of cifar_resnet20's own weights" in (
        " ".join(capsys.readouterr().out.split())
    )
    assert told == assumed


def test_figures_of_another_cpu_are_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write(tmp_path)
    tiny.quantised_for(tmp_path, "x86-vnni")
    arguments = ["tiny-int8", "--repository", str(tmp_path), "--seconds", "0"]
    monkeypatch.setattr("server.cpus.flags", lambda: {"sse2"})
    assert verify.main(arguments) == 0
    assert "tiny-int8 version 1 is measured on another CPU" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("server.cpus.flags", lambda: {"sse2", "avx512_vnni"})
    assert verify.main(arguments) == 0
    assert "another CPU" not in capsys.readouterr().out


def test_names_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert to_onnx.main(["\x1b[2J\nnet"]) == 1
    assert "there is no network \\x1b[2J\\nnet; " in capsys.readouterr().err
    console.say("\x1b[2J\nhere")
    assert capsys.readouterr().out == "\\x1b[2J\\nhere\n"


@pytest.mark.parametrize("command", [ensemble, cascade])
@pytest.mark.parametrize("name", ["../x", "Capital", ""])
def test_name_that_no_model_can_have_is_told_before_anything_is_measured(
    command: ModuleType, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as done:
        command.main([name, "one", "other", "--images", str(PHOTOS)])
    assert done.value.code == 2
    assert f"{name} is no model name" in capsys.readouterr().err
