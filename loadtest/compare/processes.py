"""A server's processes: started together, found again wherever they went, and ended together."""

import os
import subprocess
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil

STOP_S = 15.0
"""What a server is given to end by itself."""
_MARK = "COMPARE_MARK"
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True)
class Running:
    """A server that was started."""

    process: subprocess.Popen[bytes]
    mark: str
    log: Path
    started_s: float
    """by time.monotonic"""

    @property
    def has_ended(self) -> bool:
        """Nothing of it is left that was started in the foreground."""
        return self.process.poll() is not None

    def members(self) -> list[psutil.Process]:
        """All its processes: descendants, and daemons that left the tree but inherited its environment."""
        found: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            # once it has ended, its number may be another's
            found = [] if self.has_ended else [psutil.Process(self.process.pid)]
            found += [child for parent in found for child in parent.children(recursive=True)]
        return [*found, *(other for other in psutil.process_iter() if self._is_marked(other) and other not in found)]

    def memory_mb(self) -> float:
        """Proportional set sizes added up: a page that n processes share counts 1/n for each."""
        total = 0
        for member in self.members():
            with suppress(psutil.Error):
                total += member.memory_full_info().pss
        return total / 2**20

    def log_tail(self) -> str:
        """The end of what it printed."""
        return self.log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()

    def stop(self) -> None:
        """Ask it to end, then kill what is left."""
        if not self.has_ended:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_S)
        while left := [member for member in self.members() if member.is_running()]:
            for member in left:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            psutil.wait_procs(left, timeout=1)

    def _is_marked(self, other: psutil.Process) -> bool:
        try:
            return other.status() != psutil.STATUS_ZOMBIE and other.environ().get(_MARK) == self.mark
        except psutil.Error:
            return False


@contextmanager
def start(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, working_folder: Path
) -> Generator[Running]:
    """Run a server, whose home and temporary files are in `folder`, until the block ends."""
    mark = uuid4().hex
    homes = dict.fromkeys(("HOME", "TMPDIR"), str(folder))
    path, started_s = folder / "log", time.monotonic()
    with path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            command,
            env={**os.environ, **homes, **environment, _MARK: mark},
            cwd=working_folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us, who then end it in order
        )
    running = Running(process, mark, path, started_s)
    try:
        yield running
    finally:
        running.stop()
