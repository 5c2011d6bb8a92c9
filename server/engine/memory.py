"""The memory that the models of an engine take: the GPU's, where it has one, else the machine's."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


class Meter:
    """Counts from the moment when it is made, which is before the engine loads its first model."""

    def __init__(self, *, gpu: bool) -> None:
        """`gpu`: models run on a GPU, if there is one: PyTorch for CUDA runs them on the CPU of a machine without."""
        if gpu:
            from server import cuda

            gpu = cuda.find_gpu() is not None
        self._gpu = gpu
        self._start_bytes = self._read()

    def taken_bytes(self) -> int:
        """Return the bytes that all models take; 0 where the system does not tell."""
        return max(0, self._read() - self._start_bytes)

    @contextmanager
    def apart(self) -> Generator[None]:
        """Count what is taken until the block ends as no model's."""
        before_bytes = self._read()
        yield
        self._start_bytes += max(0, self._read() - before_bytes)

    def _read(self) -> int:
        """Return the bytes in use, without slots and libraries, which all processes share."""
        if self._gpu:
            from server import cuda

            return cuda.used_bytes()
        try:
            found = _ANONYMOUS.search(Path("/proc/self/status").read_text())
        except OSError:
            return 0
        return int(found[1]) * 1024 if found else 0
