"""Helpers around the CUDA runtime: errors, streams, graphs and page-locked memory."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import DeviceLostError

try:
    from cuda.bindings import runtime as runtime
except ImportError:  # CUDA for Python is not installed: `find_gpu` then returns None
    runtime = None

log = logging.getLogger(__name__)


_OUT_OF_MEMORY = ("out of memory", "Failed to allocate memory", "Available memory of", "ALLOC_FAILED")


class OutOfMemoryError(Exception):
    """The GPU has no memory left."""


class Gpu(NamedTuple):
    """The GPU of this machine."""

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """Describe the first GPU; None without a GPU, its driver, or CUDA for Python."""
    if runtime is None:
        return None
    error, properties = runtime.cudaGetDeviceProperties(0)
    if error != runtime.cudaError_t.cudaSuccess:
        return None
    return Gpu(properties.name.decode(), f"sm{properties.major}{properties.minor}")


def checked(result: tuple[Any, ...]) -> Any:
    """Return the value of a call to the CUDA runtime, without its error code.

    Raises:
        OutOfMemoryError: the GPU has not enough memory left; later calls still work.
        DeviceLostError: the error is sticky: every later call returns it.
        RuntimeError: any other error.
    """
    error, *values = result
    if error == runtime.cudaError_t.cudaSuccess:
        return values[0] if values else None
    raise_if_lost()
    if error == runtime.cudaError_t.cudaErrorMemoryAllocation:
        raise OutOfMemoryError("the GPU has no memory left")
    raise RuntimeError(f"CUDA: {error.name}")


def raise_if_lost() -> None:
    """Check, after an error, whether it is sticky.

    Raises:
        DeviceLostError: every later call will.
    """
    runtime.cudaGetLastError()  # forgets an error that is not sticky
    (again,) = runtime.cudaDeviceSynchronize()
    if again != runtime.cudaError_t.cudaSuccess:
        raise DeviceLostError(f"CUDA: {again.name}")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a runtime's error says that memory ran out.

    CUDA, cuDNN, cuBLAS and the arena of ONNX Runtime each have their own words for it, and no code.
    """
    return any(text in str(error) for text in _OUT_OF_MEMORY)


def used_bytes() -> int:
    """Memory of the GPU that is in use, by any process; 0 if unknown."""
    if runtime is None:
        return 0
    error, free_bytes, total_bytes = runtime.cudaMemGetInfo()
    return int(total_bytes - free_bytes) if error == runtime.cudaError_t.cudaSuccess else 0


def check_last() -> None:
    """Raise, as `checked` does, the error of an earlier call that returned no error code."""
    checked(runtime.cudaGetLastError())


def create_stream() -> Any:
    """Return a stream that does not wait for any other."""
    return checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))


def record(work: Callable[[], None], stream: Any) -> Any:
    """Return a CUDA graph of all that `work` enqueues on the stream, without running it.

    The caller owns it, and frees it with `forget`.
    """
    # Capture this thread alone: others may allocate meanwhile.
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    checked(runtime.cudaStreamBeginCapture(stream, mode))
    try:
        work()
    finally:
        ended = runtime.cudaStreamEndCapture(stream)
    graph = checked(ended)
    try:
        return checked(runtime.cudaGraphInstantiate(graph, 0))
    finally:
        runtime.cudaGraphDestroy(graph)  # what can be launched is a copy


def launch(graph: Any, stream: Any) -> None:
    """Enqueue a recorded graph."""
    checked(runtime.cudaGraphLaunch(graph, stream))


def forget(graph: Any) -> None:
    """Free a recorded graph, which nothing launches any more."""
    runtime.cudaGraphExecDestroy(graph)


def synchronize(stream: Any) -> None:
    """Wait for everything enqueued on the stream."""
    checked(runtime.cudaStreamSynchronize(stream))


@contextmanager
def page_locked(memory: NDArray[np.uint8]) -> Iterator[None]:
    """Let the GPU read images in `memory` directly until the block ends; otherwise CUDA first copies each.

    A failure only costs time, so it is logged and not raised.
    """
    address = memory.ctypes.data
    try:
        if runtime is None:
            raise RuntimeError("cuda-bindings is not installed")
        checked(runtime.cudaHostRegister(address, memory.nbytes, runtime.cudaHostRegisterDefault))
    except (OutOfMemoryError, RuntimeError) as error:
        log.warning("the GPU cannot read the slots directly, which costs a copy of each image: %s", error)
        yield
        return
    try:
        yield
    finally:
        runtime.cudaDeviceSynchronize()  # a batch may still be read; its errors do not matter any more
        runtime.cudaHostUnregister(address)
