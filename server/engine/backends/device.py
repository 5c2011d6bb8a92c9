"""What backends on an NVIDIA GPU share: its errors, its memory, and batch sizes whose buffers never move."""

import ctypes
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.manifest import INPUT_NAME, OUTPUT_NAMES
from server.engine.backends import DeviceLostError, Outputs

try:
    from cuda.bindings import runtime as cuda
except ImportError:  # as on a machine without a GPU, which is to be told that it has none
    cuda = None

log = logging.getLogger(__name__)


class OutOfMemoryError(Exception):
    """The GPU has no memory left for a bucket."""


class Gpu(NamedTuple):
    """The GPU of this machine."""

    name: str
    compute_capability: str


class Tensor(NamedTuple):
    """What is known of an input or output before it has memory."""

    shape: tuple[int, ...]
    kind: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Of all elements."""
        return prod(self.shape) * self.kind.itemsize


class Bucket(Protocol):
    """A batch size with buffers of its own."""

    size: int

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Classify 1 <= N <= size images.

        Raises:
            OutOfMemoryError, DeviceLostError, Exception: as the runtime reports.
        """

    def free(self) -> None:
        """Give the buffers back. Those of a bucket that is never freed live as long as the process."""


def find_gpu() -> Gpu | None:
    """Describe the first GPU; None where there is none, no driver or no CUDA for Python."""
    if cuda is None:
        return None
    error, properties = cuda.cudaGetDeviceProperties(0)
    if error != cuda.cudaError_t.cudaSuccess:
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
    if error == cuda.cudaError_t.cudaSuccess:
        return values[0] if values else None
    raise_if_lost()
    if error == cuda.cudaError_t.cudaErrorMemoryAllocation:
        raise OutOfMemoryError("the GPU has no memory left")
    raise RuntimeError(f"CUDA: {error.name}")


def raise_if_lost() -> None:
    """Find out, after an error, whether it is one that stays.

    Raises:
        DeviceLostError: it is.
    """
    cuda.cudaGetLastError()  # forgets an error that is not sticky
    (again,) = cuda.cudaDeviceSynchronize()
    if again != cuda.cudaError_t.cudaSuccess:
        raise DeviceLostError(f"CUDA: {again.name}")


def check_last() -> None:
    """Raise what `checked` does if a call that tells no error code has left one."""
    checked(cuda.cudaGetLastError())


def create_stream() -> Any:
    """Return a stream that waits for no other."""
    return checked(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking))


def record(work: Callable[[], None], stream: Any) -> Any:
    """Return what `work` enqueues on the stream as a CUDA graph; nothing of it runs."""
    # Of this thread alone: others may allocate meanwhile.
    mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
    checked(cuda.cudaStreamBeginCapture(stream, mode))
    try:
        work()
    finally:
        ended = cuda.cudaStreamEndCapture(stream)
    return checked(cuda.cudaGraphInstantiate(checked(ended), 0))


def launch(graph: Any, stream: Any) -> None:
    """Enqueue a recorded graph."""
    checked(cuda.cudaGraphLaunch(graph, stream))


def synchronize(stream: Any) -> None:
    """Wait for all that was enqueued."""
    checked(cuda.cudaStreamSynchronize(stream))


@contextmanager
def page_locked(memory: NDArray[np.uint8]) -> Iterator[None]:
    """While open, the GPU reads images in `memory` where they lie; else CUDA copies each to memory of its own first.

    Not to have it costs time and nothing else, so it is no error.
    """
    address = memory.ctypes.data
    try:
        checked(cuda.cudaHostRegister(address, memory.nbytes, cuda.cudaHostRegisterDefault))
    except (OutOfMemoryError, RuntimeError) as error:
        log.warning("the GPU cannot read the slots directly, which costs a copy of each image: %s", error)
        yield
        return
    try:
        yield
    finally:
        cuda.cudaDeviceSynchronize()  # a batch may still be read; errors are of no more interest
        cuda.cudaHostUnregister(address)


class Buffers:
    """The memory of one batch size: fixed addresses on the GPU, and page-locked memory here for the outputs."""

    def __init__(self, tensors: Mapping[str, Tensor], stream: Any) -> None:
        """Allocate all.

        Raises:
            OutOfMemoryError, DeviceLostError, RuntimeError: as CUDA reports; nothing stays allocated.
        """
        self._stream = stream
        self._image_shape = tensors[INPUT_NAME].shape[1:]
        self._host: dict[str, NDArray[Any]] = {}
        self.addresses: dict[str, int] = {}
        """On the GPU, by name."""
        try:
            for name, tensor in tensors.items():
                self.addresses[name] = checked(cuda.cudaMalloc(tensor.size_bytes))
            for name in OUTPUT_NAMES:
                self._host[name] = _page_locked_array(tensors[name])
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Give it back."""
        for address in self.addresses.values():
            cuda.cudaFree(address)
        for array in self._host.values():
            cuda.cudaFreeHost(array.ctypes.data)

    def upload(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Enqueue the copies of images to the GPU, each from where it lies; what lies in the rows after them stays.

        Raises:
            ValueError: an image has another shape than the model's, or gaps.
        """
        for row, image in enumerate(images):
            if image.shape != self._image_shape or not image.flags.c_contiguous:
                raise ValueError(f"an image has the shape {image.shape}, the model's is {self._image_shape}")
            address = self.addresses[INPUT_NAME] + row * image.nbytes
            to_device = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
            checked(cuda.cudaMemcpyAsync(address, image.ctypes.data, image.nbytes, to_device, self._stream))

    def download(self) -> None:
        """Enqueue the copies of all outputs' rows; may be recorded in a CUDA graph."""
        for name, array in self._host.items():
            to_host = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            checked(cuda.cudaMemcpyAsync(array.ctypes.data, self.addresses[name], array.nbytes, to_host, self._stream))

    def outputs(self, count: int) -> Outputs:
        """Wait for the stream, and return the first `count` rows, which are the caller's."""
        synchronize(self._stream)
        return Outputs(*(self._host[name][:count].copy() for name in OUTPUT_NAMES))


class Instance:
    """Buckets that take turns on one stream."""

    def __init__(self, makers: Iterable[Callable[[], Bucket]], name: str) -> None:
        """Make the buckets of model `name`, the smallest first, as far as the memory goes.

        Raises:
            OutOfMemoryError: it is not enough for one.
        """
        self._buckets: list[Bucket] = []
        for make in makers:
            try:
                self._buckets.append(make())
            except OutOfMemoryError as error:
                if not self._buckets:
                    raise OutOfMemoryError(f"the GPU's memory cannot hold model {name}: serve fewer models") from error
                log.warning("%s runs batches of up to %d: %s", name, self._buckets[-1].size, error)
                return

    def free(self) -> None:
        """Give all memory back."""
        for bucket in self._buckets:
            bucket.free()

    def run(self, images: Sequence[NDArray[np.uint8]]) -> Outputs:
        """Classify in as many turns as it takes; a bucket that finds no memory to run in is given up."""
        parts: list[Outputs] = []
        done = 0
        while done < len(images):
            waiting = len(images) - done
            at = next((at for at, one in enumerate(self._buckets) if one.size >= waiting), len(self._buckets) - 1)
            part = images[done : done + self._buckets[at].size]
            try:
                parts.append(self._buckets[at].run(part))
            except OutOfMemoryError:
                if at == 0:
                    raise
                for bucket in self._buckets[at:]:
                    bucket.free()
                del self._buckets[at:]
            else:
                done += len(part)
        return parts[0] if len(parts) == 1 else Outputs(*map(np.concatenate, zip(*parts, strict=True)))


def _page_locked_array(tensor: Tensor) -> NDArray[Any]:
    """Memory of this machine that the GPU copies to without another copy in between."""
    address = checked(cuda.cudaHostAlloc(tensor.size_bytes, cuda.cudaHostAllocDefault))
    memory = (ctypes.c_uint8 * tensor.size_bytes).from_address(address)
    return np.ctypeslib.as_array(memory).view(tensor.kind).reshape(tensor.shape)
