"""What the models of an engine take of the memory: of the GPU's, where it has one, else of the machine's."""

import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

_ANONYMOUS = re.compile(r"^RssAnon:\s+(\d+) kB", re.MULTILINE)


class Meter:
    """Counts from when it was made, before the first model was loaded."""

    def __init__(self, *, gpu: bool) -> None:
        self._gpu = gpu
        self._start_bytes = self._read()

    def taken_bytes(self) -> int:
        """By all models; 0 where the system does not tell."""
        return max(0, self._read() - self._start_bytes)

    @contextmanager
    def apart(self) -> Generator[None]:
        """What is taken until the block ends is of no model."""
        before_bytes = self._read()
        yield
        self._start_bytes += max(0, self._read() - before_bytes)

    def _read(self) -> int:
        """Without slots and libraries, which all processes share."""
        if self._gpu:
            from server import cuda

            return cuda.used_bytes()
        try:
            found = _ANONYMOUS.search(Path("/proc/self/status").read_text())
        except OSError:
            return 0
        return int(found[1]) * 1024 if found else 0
