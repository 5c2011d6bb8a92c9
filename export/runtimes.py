"""The runtimes that an ONNX file is checked with, set up as the server sets them up."""

import os
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from models.errors import ExpectedError
from models.manifest import INPUT_NAME, OUTPUT_NAMES

Runtime = Literal["onnx", "openvino"]
RUNTIMES: tuple[Runtime, ...] = get_args(Runtime)


class RuntimeUnusableError(ExpectedError):
    """A runtime is not installed or cannot run a file."""


class Outputs(NamedTuple):
    """What a complete graph gives."""

    probabilities: NDArray[np.float32]
    """float32[N, top_k], best first"""
    indices: NDArray[np.int32]
    """int32[N, top_k]"""
    logits: NDArray[np.float32]
    """float32[N, num_classes]"""


Run = Callable[[NDArray[np.uint8]], Outputs]
"""Classifies uint8[N, H, W, 3]."""


def available_threads() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0))


def load(model: bytes, runtime: Runtime, threads: int) -> Run:
    """Load an ONNX file.

    Raises:
        RuntimeUnusableError: the runtime is not installed or refuses the file.
    """
    try:
        return _onnx(model, threads) if runtime == "onnx" else _openvino(model, threads)
    except ImportError as missing:
        raise RuntimeUnusableError(f"{runtime} is not installed: pip install '.[export]'") from missing
    except Exception as failure:  # runtimes' errors have no common class
        raise RuntimeUnusableError(f"{runtime} cannot run the file: {str(failure).splitlines()[0]}") from failure


def _onnx(model: bytes, threads: int) -> Run:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # it would slow what runs in turns with it
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda images: Outputs(*session.run(OUTPUT_NAMES, {INPUT_NAME: images}))


def _openvino(model: bytes, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the file decides; the default is bfloat16 where the CPU has it
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(model), "CPU", config)

    def run(images: NDArray[np.uint8]) -> Outputs:
        outputs = compiled.create_infer_request().infer({INPUT_NAME: images})
        return Outputs(*(outputs[name] for name in OUTPUT_NAMES))

    return run
