"""What backends on an NVIDIA GPU share: memory, and batch sizes whose buffers never move."""

import ctypes
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from models.manifest import EXTRA_NAMES, INPUT_NAME, OUTPUT_NAMES
from server import cuda
from server.cuda import OutOfMemoryError
from server.engine.backends import Outputs
from server.engine.classes import Extras

log = logging.getLogger(__name__)


class Tensor(NamedTuple):
    """Shape and element type of an input or output."""

    shape: tuple[int, ...]
    kind: np.dtype[Any]

    @property
    def size_bytes(self) -> int:
        """Size of all elements."""
        return prod(self.shape) * self.kind.itemsize


class Bucket(Protocol):
    """A batch size with buffers of its own."""

    size: int

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras) -> Outputs:
        """Classify 1 <= N <= size images; see `Backend.run` for what is wanted.

        Raises:
            OutOfMemoryError, DeviceLostError, Exception: as the runtime reports.
        """

    def free(self) -> None:
        """Give the buffers back. Those of a bucket that is never freed live as long as the process."""


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
                self.addresses[name] = cuda.checked(cuda.runtime.cudaMalloc(tensor.size_bytes))
            for name in OUTPUT_NAMES + [name for name in EXTRA_NAMES if name in tensors]:
                self._host[name] = _page_locked_array(tensors[name])
        except BaseException:
            self.free()
            raise

    def free(self) -> None:
        """Give it back."""
        for address in self.addresses.values():
            cuda.runtime.cudaFree(address)
        for array in self._host.values():
            cuda.runtime.cudaFreeHost(array.ctypes.data)

    def upload(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Enqueue the copies of images to the GPU, each from where it lies; what lies in the rows after them stays.

        Raises:
            ValueError: an image has another shape than the model's, or gaps.
        """
        for row, image in enumerate(images):
            if image.shape != self._image_shape or not image.flags.c_contiguous:
                raise ValueError(f"an image has the shape {image.shape}, the model's is {self._image_shape}")
            address = self.addresses[INPUT_NAME] + row * image.nbytes
            self._copy(address, image.ctypes.data, image.nbytes, cuda.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, names: Iterable[str]) -> None:
        """Enqueue the copies of these outputs' rows; may be recorded in a CUDA graph."""
        to_host = cuda.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        for name in names:
            array = self._host[name]
            self._copy(array.ctypes.data, self.addresses[name], array.nbytes, to_host)

    def _copy(self, to: int, source: int, size_bytes: int, kind: Any) -> None:
        cuda.checked(cuda.runtime.cudaMemcpyAsync(to, source, size_bytes, kind, self._stream))

    def outputs(self, count: int, extras: Sequence[str] = ()) -> Outputs:
        """Wait for the stream, and return the first `count` rows of what was downloaded, which are the caller's."""
        cuda.synchronize(self._stream)
        return Outputs(**{name: self._host[name][:count].copy() for name in (*OUTPUT_NAMES, *extras)})


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

    def run(self, images: Sequence[NDArray[np.uint8]], wanted: Extras = Extras.NONE) -> Outputs:
        """Classify in as many turns as it takes; a bucket that finds no memory to run in is given up."""
        parts: list[Outputs] = []
        done = 0
        while done < len(images):
            waiting = len(images) - done
            at = next((at for at, one in enumerate(self._buckets) if one.size >= waiting), len(self._buckets) - 1)
            part = images[done : done + self._buckets[at].size]
            try:
                parts.append(self._buckets[at].run(part, wanted))
            except OutOfMemoryError:
                if at == 0:
                    raise
                for bucket in self._buckets[at:]:
                    bucket.free()
                del self._buckets[at:]
            else:
                done += len(part)
        if len(parts) == 1:
            return parts[0]
        together: list[Any] = [None if rows[0] is None else np.concatenate(rows) for rows in zip(*parts, strict=True)]
        return Outputs(*together)


def _page_locked_array(tensor: Tensor) -> NDArray[Any]:
    """Memory of this machine that the GPU copies to without another copy in between."""
    address = cuda.checked(cuda.runtime.cudaHostAlloc(tensor.size_bytes, cuda.runtime.cudaHostAllocDefault))
    memory = (ctypes.c_uint8 * tensor.size_bytes).from_address(address)
    return np.ctypeslib.as_array(memory).view(tensor.kind).reshape(tensor.shape)
