"""The server's own backends, for the gates and reports of this folder: they measure what will serve."""

from typing import Literal, get_args

from models.errors import ExpectedError, first_line
from models.manifest import Manifest
from server.cpus import available_cpus
from server.engine import backends
from server.engine.backends import Backend, BackendMissingError
from server.settings import Settings

Runtime = Literal["onnx", "openvino"]
"""A runtime for ONNX files."""
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


class BackendError(ExpectedError):
    """A runtime is not installed or cannot run a file."""


def load(model: Manifest, content: bytes, runtime: Runtime | None = None, threads: int | None = None) -> Backend:
    """Load a model's file as the server does by default, with as many threads as there are CPUs.

    ONNX files run on the CPU. No SERVER_... variable is read: a gate decides alike in every shell.

    Args:
        model: the file's manifest.
        content: of the file.
        runtime: for an ONNX file, instead of the one that its manifest names.
        threads: of one inference, instead of one for each CPU.

    Raises:
        BackendError: the runtime is not installed or refuses the file.
    """
    settings = Settings.model_construct(backend=runtime, inference_threads=threads or available_cpus(), instances=1)
    try:
        return backends.load(model, content, settings)
    except BackendMissingError as missing:
        raise BackendError(str(missing)) from missing
    except Exception as failure:  # runtimes' errors have no common class
        name = runtime or model.backend
        raise BackendError(f"{name} cannot run the file: {first_line(failure)}") from failure
