import sys
from typing import Any
from unittest import mock

import numpy as np
import pytest

from export import backends
from export.backends import BackendError
from server.cpus import available_cpus
from server.engine.backends import onnx as onnx_backend
from server.settings import Settings
from tests.export.conftest import Exported


def options_of(backend: Any) -> tuple[int, str]:
    """A session's number of threads, and how long they spin."""
    backend = getattr(backend, "_plain", backend)  # of two graphs, the one without features
    options = backend._alone.get_session_options()
    return options.intra_op_num_threads, options.get_session_config_entry("session.intra_op.spin_duration_us")


def test_a_file_runs_in_the_sessions_that_serve_it(exported: Exported) -> None:
    served = onnx_backend.load(exported.draft, exported.model, Settings())
    assert options_of(backends.load(exported.draft, exported.model)) == options_of(served)
    assert options_of(backends.load(exported.draft, exported.model, threads=3)) == (3, onnx_backend.SPIN_US)
    assert available_cpus() == options_of(served)[0]


def test_variables_for_a_server_do_not_reach_the_gates(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PROVIDERS": "CUDAExecutionProvider", "BACKEND": "openvino", "QUEUE_SIZE": "none"}.items():
        monkeypatch.setenv(f"SERVER_{name}", value)
    outputs = backends.load(exported.draft, exported.model).run([np.zeros((32, 32, 3), np.uint8)])
    assert outputs.logits.shape == (1, 10)


def test_a_runtime_that_gives_no_reason_is_named_with_its_error(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_backend, "load", mock.Mock(side_effect=MemoryError))
    with pytest.raises(BackendError, match=r"^onnx cannot run the file: MemoryError$"):
        backends.load(exported.draft, exported.model)


def test_what_cannot_run_is_said_in_one_line(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=r"^onnx cannot run the file: .+$"):
        backends.load(exported.draft, b"no graph")
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "server.engine.backends.openvino", raising=False)
    with pytest.raises(BackendError, match=r"openvino is not installed: .*'\.\[openvino\]'"):
        backends.load(exported.draft, exported.model, "openvino")
