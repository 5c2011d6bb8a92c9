"""The CUDA runtime, whoever uses it: what its errors mean, streams, and memory that it reads where it lies."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from server.errors import DeviceLostError

try:
    from cuda.bindings import runtime as runtime
except ImportError:  # as on a machine without a GPU, which is to be told that it has none
    runtime = None

log = logging.getLogger(__name__)


class OutOfMemoryError(Exception):
    """The GPU has no memory left."""


class Gpu(NamedTuple):
    """The GPU of this machine."""

    name: str
    compute_capability: str


def find_gpu() -> Gpu | None:
    """Describe the first GPU; None where there is none, no driver or no CUDA for Python."""
    if runtime is None:
        return None
    error, properties = runtime.cudaGetDeviceProperties(0)
    if error != runtime.cudaError_t.cudaSuccess:
        return None
    return Gpu(properties.name.decode(), f"sm{properties.major}{properties.minor}")


def checked(result: tuple[Any, ...]) -> Any:
    """Return what a call of the CUDA runtime gives beside its error code.

    Raises:
        OutOfMemoryError: the call found no memory; all else works.
        DeviceLostError: the error is sticky, every later call returns it.
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
    """Find out, after an error, whether it is one that stays.

    Raises:
        DeviceLostError: it is.
    """
    runtime.cudaGetLastError()  # forgets an error that is not sticky
    (again,) = runtime.cudaDeviceSynchronize()
    if again != runtime.cudaError_t.cudaSuccess:
        raise DeviceLostError(f"CUDA: {again.name}")


def used_bytes() -> int:
    """Of the GPU's memory, by whatever process; 0 where that cannot be told."""
    if runtime is None:
        return 0
    error, free_bytes, total_bytes = runtime.cudaMemGetInfo()
    return int(total_bytes - free_bytes) if error == runtime.cudaError_t.cudaSuccess else 0


def check_last() -> None:
    """Raise what `checked` does if a call that tells no error code has left one."""
    checked(runtime.cudaGetLastError())


def create_stream() -> Any:
    """Return a stream that waits for no other."""
    return checked(runtime.cudaStreamCreateWithFlags(runtime.cudaStreamNonBlocking))


def record(work: Callable[[], None], stream: Any) -> Any:
    """Return what `work` enqueues on the stream as a CUDA graph; nothing of it runs."""
    # Of this thread alone: others may allocate meanwhile.
    mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    checked(runtime.cudaStreamBeginCapture(stream, mode))
    try:
        work()
    finally:
        ended = runtime.cudaStreamEndCapture(stream)
    return checked(runtime.cudaGraphInstantiate(checked(ended), 0))


def launch(graph: Any, stream: Any) -> None:
    """Enqueue a recorded graph."""
    checked(runtime.cudaGraphLaunch(graph, stream))


def synchronize(stream: Any) -> None:
    """Wait for all that was enqueued."""
    checked(runtime.cudaStreamSynchronize(stream))


@contextmanager
def page_locked(memory: NDArray[np.uint8]) -> Iterator[None]:
    """While open, the GPU reads images in `memory` where they lie; else CUDA copies each to memory of its own first.

    Not to have it costs time and nothing else, so it is no error.
    """
    address = memory.ctypes.data
    try:
        checked(runtime.cudaHostRegister(address, memory.nbytes, runtime.cudaHostRegisterDefault))
    except (OutOfMemoryError, RuntimeError) as error:
        log.warning("the GPU cannot read the slots directly, which costs a copy of each image: %s", error)
        yield
        return
    try:
        yield
    finally:
        runtime.cudaDeviceSynchronize()  # a batch may still be read; errors are of no more interest
        runtime.cudaHostUnregister(address)
