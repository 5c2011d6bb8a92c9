"""With only the server's dependencies installed, every command works, or says in one line what it needs."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from models import hints
from tests import tiny
from tests.server.running import PATIENCE_S, ROOT

HIDDEN = [*hints.EXTRAS, "timm", "transformers", "nvidia", "tensorrt", "tensorrt_rtx_bindings", "opentelemetry.sdk"]

PROGRAM = """
import json, os, runpy, sys
hidden, commands = map(json.loads, sys.argv[1:])

class Finder:
    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        if not any(f"{name}.".startswith(f"{one}.") for one in hidden):
            return self._finder.find_spec(name, path, target)

sys.meta_path[:] = map(Finder, sys.meta_path)
import server.supervisor  # once for all of them
for number, (name, *arguments) in enumerate(commands):
    if (child := os.fork()) == 0:
        for descriptor, end in (1, "out"), (2, "err"):
            os.dup2(os.open(f"{number}.{end}", os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv = [name, *arguments]
        (runpy.run_path if name.endswith(".py") else runpy.run_module)(name, run_name="__main__")
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    errors: str


def run(folder: Path, commands: Sequence[Sequence[str]]) -> list[Ended]:
    """Run commands one after the other in a process from which the modules are hidden."""
    found = [[str(ROOT / name) if name.endswith(".py") else name, *arguments] for name, *arguments in commands]
    command = [sys.executable, "-c", PROGRAM, json.dumps(HIDDEN), json.dumps(found)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    codes = map(int, done.stdout.split())
    return [Ended(code, (folder / f"{number}.err").read_text()) for number, code in enumerate(codes)]


EXPORTING = (
    ("to_onnx", "resnet18", "--random-weights"),
    ("to_onnx", "hf:somebody/something"),
    ("from_onnx", "model_repository/tiny/1/model.onnx", "--name", "mine"),
    ("to_torch", "resnet18", "--random-weights"),
    ("verify", "tiny"),
    ("quantize", "tiny"),
    ("calibrate", "tiny", "--images", "."),
    ("to_trt", "tiny", "--target", "sm89"),
    ("ensemble", "both", "tiny", "tiny"),
    ("cascade", "steps", "tiny", "tiny", "--images", "."),
)
LOADING = (
    *("bench", "devices", "engine_loop", "failover", "growth", "many_models", "mlperf", "overload", "soak", "tune"),
)
SERVING = (
    ("tune",),
    *(
        ("--repository", "model_repository", "--port", "0", *flags)
        for flags in (
            ("--grpc-port", "0"),
            ("--otlp-endpoint", "http://127.0.0.1:9"),
            ("--decoder", "nvimagecodec-cpu"),
        )
    ),
)


def test_a_missing_extra_is_one_line_that_says_how_to_install_it(tmp_path: Path) -> None:
    tiny.write(tmp_path / "model_repository")
    commands = [
        *((f"export/{name}.py", *arguments) for name, *arguments in EXPORTING),
        *((f"loadtest/{name}.py",) for name in LOADING),
        ("loadtest.compare",),
        *(("server", *arguments) for arguments in SERVING),
    ]
    for command, (code, errors) in zip(commands, run(tmp_path, commands), strict=True):
        assert (code, errors.count("\n")) == (1, 1), f"{command}: {errors}"
        assert re.search(r"python -m pip install .* --editable '\S+\[[\w-]+\]'", errors), f"{command}: {errors}"


def test_what_needs_no_extra_works_without_any(tmp_path: Path) -> None:
    tiny.write(tmp_path / "model_repository")
    ended = run(tmp_path, [("server", "doctor"), ("server", "--version"), ("loadtest/simulate.py", "--help")])
    assert [(code, errors) for code, errors in ended] == [(0, "")] * 3


def test_what_others_lack_keeps_its_traceback(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("import models.missing\nimport no_such_module\n")
    command = [sys.executable, "program.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
