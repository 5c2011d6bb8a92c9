"""The servers to compare: how to start each, send it requests and read its answers."""

import json
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from loadtest import responses
from loadtest.compare import environments
from loadtest.connection import JPEG
from loadtest.loops import Target
from loadtest.responses import Answer, Parse

if TYPE_CHECKING:
    from loadtest.compare.networks import Work

OURS = "ours"
_LIBRARIES = str(sysconfig.get_config_var("LIBDIR"))


@dataclass(frozen=True, slots=True)
class Server:
    """One variant of a server."""

    name: str
    variant: str
    title: str
    path: str = "/predict"
    flags: tuple[str, ...] = ()
    """of our server"""
    program: tuple[str, ...] = ()
    """of a rival, in its virtual environment"""
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=lambda: JPEG)
    parse: Parse = responses.parse

    @property
    def is_ours(self) -> bool:
        """It runs in this virtual environment, and on complete graphs."""
        return self.name == OURS

    def command(self, work: "Work", port: int) -> tuple[list[str], dict[str, str]]:
        """The command that starts it, and its environment variables.

        Raises:
            InstallError: a rival cannot be installed.
        """
        if self.is_ours:
            serve = [sys.executable, "-m", "server", "--port", str(port), "--repository", str(work.repository)]
            return [*serve, "--models", str(self._model(work)), *self.flags], {}
        folder = environments.ensure(self.name)
        described = {"network": str(work.network), "tuned": self.variant == "tuned", **work.preprocessing}
        program = [part.format(port=port) for part in self.program]
        variables = {"PORT": str(port), "COMPARE_WORK": json.dumps(described), **self.environment}
        return [str(folder / program[0]), *program[1:]], variables

    def target(self, port: int) -> Target:
        """Where it will answer."""
        return Target(f"http://127.0.0.1:{port}{self.path}", self.headers, self.parse)

    def can_run(self, work: "Work") -> bool:
        """The work has a model for this variant."""
        return self._model(work) is not None

    def _model(self, work: "Work") -> str | None:
        return {"int8": work.int8, "cascade": work.cascade}.get(self.variant, work.name)


def _parse_json(status: int, body: bytes) -> Answer:
    """Parse an answer made by `rivals.work.answers`. No rival reports the size of its batches."""
    responses.check_status(status, body)
    try:
        content = json.loads(body)
        classes, probabilities = content["classes"], content["probabilities"]
    except (ValueError, LookupError, TypeError) as error:
        raise responses.unreadable(body, error) from error
    return _answer(classes, probabilities)


def _parse_triton(status: int, body: bytes) -> Answer:
    """Parse a JSON head and the tensors after it: int32[5], float32[5]."""
    responses.check_status(status, body)
    try:
        _, end = json.JSONDecoder().raw_decode(body.decode("latin-1"))
        classes = np.frombuffer(body, "<i4", responses.TOP_K, end)
        probabilities = np.frombuffer(body, "<f4", responses.TOP_K, end + classes.nbytes)
    except ValueError as error:
        raise responses.unreadable(body, error) from error
    return _answer(classes.tolist(), probabilities.tolist())


def _answer(classes: Sequence[int], probabilities: Sequence[float]) -> Answer:
    responses.check_probabilities(probabilities)
    return Answer("", classes[0], batch_size=1)


def _module(name: str) -> tuple[str, ...]:
    return "python", "-m", f"loadtest.compare.rivals.{name}"


def _rival(name: str, title: str, package: str, program: tuple[str, ...] = ()) -> Server:
    full_title = f"{title} {environments.version(name, package)}"
    return Server(name, "plain", full_title, program=program or _module(name), parse=_parse_json)


_RIVALS = (
    _rival("fastapi", "FastAPI", "fastapi"),
    _rival("litserve", "LitServe", "litserve"),
    replace(_rival("mosec", "mosec", "mosec"), path="/inference"),
    replace(
        _rival("bentoml", "BentoML", "bentoml"),
        program=(
            *("bentoml", "serve", "loadtest.compare.rivals.bentoml:Classifier"),
            *("--host", "127.0.0.1", "--port", "{port}"),
        ),
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    replace(
        _rival("ray", "Ray Serve", "ray"),
        environment={
            "RAY_AUTH_MODE": "disabled",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
    ),
    replace(
        _rival("triton", "Triton (PyTriton)", "nvidia-pytriton"),
        path="/v2/models/predict/infer",
        environment={"LD_LIBRARY_PATH": _LIBRARIES},  # its Python stub loads this interpreter's library
        headers={"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"},
        parse=_parse_triton,
    ),
)
SERVERS = (
    Server(OURS, "onnx", "this server", "/classify", flags=("--backend", "onnx")),
    Server(OURS, "openvino", "this server, OpenVINO", "/classify", flags=("--backend", "openvino")),
    Server(OURS, "int8", "this server, OpenVINO, INT8", "/classify", flags=("--backend", "openvino")),
    Server(OURS, "cascade", "this server, exact cascade", "/classify"),
    *(replace(rival, variant=variant) for rival in _RIVALS for variant in ("plain", "tuned")),
)
NAMES = tuple(dict.fromkeys(server.name for server in SERVERS))
RIVALS = tuple(name for name in NAMES if name != OURS)
