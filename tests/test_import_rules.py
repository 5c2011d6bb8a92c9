"""Which modules may import which, so that no layer comes to depend on another that it should not know."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENT = "client/resnet_serving_client"
OURS = {"models", "export", "server", "resnet_serving_client", "loadtest", "deploy", "tests"}
WEB = {"fastapi", "starlette", "uvicorn", "multipart", "python_multipart", "httptools", "uvloop"}
COMMANDS = ("to_onnx", "from_onnx", "to_torch", "verify", "quantize", "calibrate", "to_trt", "ensemble", "cascade")
NEED_NO_SERVER = {
    f"loadtest.{name}" for name in ("baseline", "engine", "engine_loop", "simulate", "capacity", "pretended")
}
"""They measure, simulate or replace parts of the server; everything else in loadtest loads a running server."""
ADVICE = {"models.hints", "models.missing"}
"""Modules that say which packages to install."""
RUNTIMES = {"onnxruntime", "cuda", "openvino", "tensorrt", "tensorrt_rtx", "torch"}


def imports(folder: str, *, but: str | None = None) -> Iterator[tuple[str, str]]:
    """(file, absolute name) of every import below a folder, including those inside functions."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        if but and path.is_relative_to(ROOT / but):
            continue
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_bytes(), name)):
            if isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name} imports by a relative name"
                yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)


def offences(folder: str, forbidden: set[str], *, but: str | None = None) -> list[str]:
    """Imports of `forbidden` modules, or of modules inside them."""
    return [f"{file} imports {name}" for file, name in imports(folder, but=but) if offends(name, forbidden)]


def offends(name: str, forbidden: set[str]) -> bool:
    """Whether a module is `forbidden`, or inside one that is."""
    return any(f"{name}.".startswith(f"{one}.") for one in forbidden)


def module(offence: str) -> str:
    """The importing module."""
    return offence.partition(".py imports ")[0].replace("/", ".")


@pytest.mark.parametrize("folder", ["models", "export", "server", CLIENT, "loadtest"])
def test_the_rules_are_about_something(folder: str) -> None:
    assert list(imports(folder))


def test_an_import_of_ours_is_noticed() -> None:
    assert offences("tests/server", {"server.engine.scheduler"})
    assert not offences("tests/server", {"server.engine.schedule"})


def test_models_imports_nothing_of_ours() -> None:
    assert offences("models", OURS - {"models"}) == []


def test_export_knows_of_the_server_only_what_runs_models_and_reads_images() -> None:
    assert offences("export", OURS - {"export", "models", "server"}) == []
    known = {"server.engine.backends", "server.engine.classes", "server.images.decode"}
    known |= {f"server.{name}" for name in ("cpus", "cuda", "errors", "settings")}
    others = [line for line in offences("export", {"server"}) if not offends(line.split()[-1], known)]
    assert others == []


def test_no_command_of_export_imports_another() -> None:
    assert {Path(file).stem for file, name in imports("export") if name == "export.command"} >= set(COMMANDS)
    assert offences("export", {f"export.{command}" for command in COMMANDS}) == []


def test_commands_of_export_import_first_what_answers_ctrl_c() -> None:
    ours = [(Path(file).stem, name) for file, name in imports("export") if offends(name, OURS)]
    for command in COMMANDS:
        assert next(name for stem, name in ours if stem == command) == "export.interrupts"


def test_commands_read_their_arguments_before_they_load_a_runtime() -> None:
    heavy = RUNTIMES - {"cuda"} | WEB | {"onnx"}  # CUDA's bindings load quickly, and say which GPU there is
    program = "import sys, importlib\n" + "".join(
        f"importlib.import_module('export.{command}')\nprint('{command}', sorted({heavy} & set(sys.modules)))\n"
        for command in COMMANDS
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (0, [f"{command} []" for command in COMMANDS]), done.stderr


def test_the_server_reads_manifests_and_what_they_mean_and_knows_nothing_else_of_models() -> None:
    names = ("manifest", "confidence", "intervals", "errors", "hints", "missing", "__init__")
    known = {f"models.{name}" for name in names}
    others = {f"models.{path.stem}" for path in (ROOT / "models").glob("*.py")} - known
    assert offences("server", others) == []


def test_the_server_knows_neither_export_nor_torch() -> None:
    assert offences("server", OURS - {"server", "models"}) == []
    assert offences("server", {"onnx"}) == ["server/images/resampling.py imports onnx.parser"]  # only where it is used
    assert offences("server", {"torch", "torchvision"}, but="server/engine/backends/torch.py") == []


def test_only_http_knows_the_web_framework() -> None:
    assert offences("server", WEB, but="server/http") == []


@pytest.mark.parametrize("transport", ["server/http", "server/grpc", "deploy/ray"])
def test_no_transport_imports_another(transport: str) -> None:
    others = {"server/http": "server.http", "server/grpc": "server.grpc", "deploy/ray": "deploy.ray"}
    of_others = {name for folder, name in others.items() if folder != transport}
    allowed = {
        "server/http/worker.py imports server.grpc.service",  # the process that holds both
        "deploy/ray/app.py imports server.http.app.create_app",  # Ray carries HTTP
    }
    assert set(offences(transport, of_others)) <= allowed


def test_the_serving_core_and_the_engine_know_no_transport() -> None:
    transports = {"server.http", "server.grpc", "server.v2", "deploy"}
    for folder in ("server/serving", "server/engine", "server/v2"):
        assert offences(folder, transports - {folder.replace("/", ".")}) == []


def test_the_engine_does_not_know_the_serving_core() -> None:
    assert offences("server/engine", {"server.serving"}) == []


def test_only_server_grpc_knows_grpc() -> None:
    assert offences("server", {"grpc", "google"}, but="server/grpc") == []


def test_grpc_is_not_loaded_where_it_is_not_asked_for() -> None:
    program = "import sys, server.__main__, server.http.worker\nprint('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_only_backends_know_runtimes() -> None:
    found = offences("server", RUNTIMES, but="server/engine/backends")
    assert found == [
        "server/cuda.py imports cuda.bindings.runtime",  # for the backends, and for decoding on a GPU
        "server/images/nvimagecodec.py imports onnxruntime",  # for a graph of its own
    ]


def test_images_do_not_know_the_engine() -> None:
    assert offences("server/images", {"server.engine", "server.serving"}) == []


def test_the_engine_core_knows_neither_processes_nor_sockets() -> None:
    others = {"multiprocessing", "msgspec", "asyncio", "socket", "server.http", "server.settings"}
    core = {"server/engine/core.py", "server/engine/scheduler.py", "server/engine/tickets.py"}
    found = [line for line in offences("server", others) if line.split()[0] in core]
    assert found == []


def test_what_the_supervisor_decides_by_knows_neither_processes_nor_the_time() -> None:
    world = {
        "multiprocessing",
        "socket",
        "threading",
        "signal",
        "time",
        "os",
        "logging",
        "server.child",
        "server.children",
    }
    names = (
        "fleet",
        "model_control",
        "rollout",
        "on_demand",
        "residence",
        "fitting",
        "holding",
        "holdings",
        "placement",
        "engine/tickets",
        "engine/dispatch",
    )
    deciding = {f"server/{name}.py" for name in names}
    found = [line for line in offences("server", world) if line.split()[0] in deciding]
    assert found == []


@pytest.mark.parametrize("folder", [CLIENT, "loadtest"])
def test_clients_speak_http_only(folder: str) -> None:
    found = offences(folder, OURS - {Path(folder).name}) + offences("loadtest", NEED_NO_SERVER)
    found = [line for line in found if not offends(line.split()[-1], ADVICE)]  # locust's image has none of these
    assert [line for line in found if module(line) not in NEED_NO_SERVER] == []


def test_what_measures_without_a_server_knows_the_engine_and_nothing_of_processes_or_http() -> None:
    engine = ("admission", "backends", "classes", "dispatch", "scheduler")
    known = {"models.manifest", *ADVICE, *(f"server.engine.{name}" for name in engine)}
    known |= {f"server.{name}" for name in ("cpus", "errors", "images", "repository", "settings")}
    more = {
        # it measures the engine's process
        "loadtest.engine_loop": {f"server.{name}" for name in ("control", "engine", "metrics", "placement", "slots")},
        "loadtest.pretended": {"server.__main__"},  # it runs this
    }
    found = [line for line in offences("loadtest", OURS - {"loadtest"}) if not offends(line.split()[2], known)]
    assert [line for line in found if not offends(line.split()[2], more.get(module(line), set()))] == []


def test_locust_needs_no_more_than_its_image_has() -> None:
    program = (
        "import sys, loadtest.locustfile\n"
        "print(sorted({'pydantic', 'uvloop', 'msgspec', 'server', 'models'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_serving_process_loads_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, server.__main__, server.http.worker, server.engine.process, server.engine.backends.onnx\n"
        "print(sorted({'torch', 'onnx', 'export', 'tests'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_a_supervisor_loads_no_runtime() -> None:
    program = "import sys, server.__main__\nprint('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_the_server_reads_no_clock_that_can_be_set() -> None:
    settable = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "server").rglob("*.py"))
        if path.name != "tracing.py"  # OpenTelemetry wants spans in wall-clock time; no wait depends on it
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id, node.attr) in settable
    ]
    assert found == []
    assert offences("server", {"time.time", "time.time_ns"}) == []


def test_no_test_imports_another() -> None:
    found = [f"{file} imports {name}" for file, name in imports("tests") if re.search(r"\btests\.(\w+\.)*test_", name)]
    assert found == []
