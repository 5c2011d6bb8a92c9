"""A fake CUDA runtime that works in this machine's memory, in place of a GPU."""

import ctypes
from types import SimpleNamespace
from typing import Any

import pytest

from server import cuda as ours

cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")

OK = cuda.cudaError_t.cudaSuccess
OUT_OF_MEMORY = cuda.cudaError_t.cudaErrorMemoryAllocation
STICKY = cuda.cudaError_t.cudaErrorIllegalAddress


class HostCuda:
    """Memory, streams that run everything immediately, and errors when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.limit_bytes = 2**30
        """Limit on all memory allocated at one time."""
        self.lost: Any = OK
        """What every later synchronization returns."""
        self.refuses_to_register: Any = OK
        self.allocated: dict[int, ctypes.Array[ctypes.c_char]] = {}
        self.registered: dict[int, int] = {}
        self.copied_from: list[int] = []
        synchronize = lambda *_: (self.lost,)  # noqa: E731
        fake = SimpleNamespace(
            cudaError_t=cuda.cudaError_t,
            cudaMemcpyKind=cuda.cudaMemcpyKind,
            cudaHostAllocDefault=cuda.cudaHostAllocDefault,
            cudaHostRegisterDefault=cuda.cudaHostRegisterDefault,
            cudaStreamNonBlocking=cuda.cudaStreamNonBlocking,
            cudaStreamCreateWithFlags=lambda _: (self.lost, 1),
            cudaMalloc=self._allocate,
            cudaFree=self._free,
            cudaHostAlloc=lambda size, _: self._allocate(size),
            cudaFreeHost=self._free,
            cudaMemcpyAsync=self._copy,
            cudaStreamSynchronize=synchronize,
            cudaDeviceSynchronize=synchronize,
            cudaGetLastError=lambda: (self.lost,),
            cudaHostRegister=self._register,
            cudaHostUnregister=lambda address: self.registered.pop(address) and (OK,),
        )
        monkeypatch.setattr(ours, "runtime", fake)

    def _allocate(self, size: int) -> tuple[Any, ...]:
        if sum(map(len, self.allocated.values())) + size > self.limit_bytes:
            return OUT_OF_MEMORY, None
        memory = ctypes.create_string_buffer(size)
        self.allocated[ctypes.addressof(memory)] = memory
        return OK, ctypes.addressof(memory)

    def _free(self, address: int) -> tuple[Any, ...]:
        del self.allocated[address]
        return (OK,)

    def _copy(self, to: int, source: int, size: int, _kind: Any, _stream: Any) -> tuple[Any, ...]:
        ctypes.memmove(to, source, size)
        self.copied_from.append(source)
        return (self.lost,)

    def _register(self, address: int, size: int, _flags: int) -> tuple[Any, ...]:
        if self.refuses_to_register == OK:
            self.registered[address] = size
        return (self.refuses_to_register,)


@pytest.fixture
def host_cuda(monkeypatch: pytest.MonkeyPatch) -> HostCuda:
    return HostCuda(monkeypatch)
