"""A child process of the supervisor, with the pipes between the two.

It is a fork of a process that has imported what all children need: it starts in some hundredths of a second and shares
that process's memory. Only on Linux may a fork go on to use the system's libraries; elsewhere each child is a new
interpreter, which takes half a second to start.
"""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from typing import Generic, Literal, Self, TypeVar, cast

from server import logs, portable
from server.settings import Settings

STOP_S = 5.0
"""Grace period before SIGKILL."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Handled by the supervisor; blocked in its children."""
ENGINE, WORKER = "server.engine.process", "server.http.worker"
"""The modules whose `main` children run. The supervisor itself needs nothing that they import."""

PROCESSES: ForkServerContext | SpawnContext = (
    multiprocessing.get_context("forkserver") if portable.LINUX else multiprocessing.get_context("spawn")
)
PROCESSES.set_forkserver_preload([ENGINE, WORKER])


def keep_socket_in(folder: Path) -> None:
    """Put the fork server's socket there; by default it makes a folder, which a killed supervisor leaves behind."""
    multiprocessing.current_process()._config["tempdir"] = str(folder)  # type: ignore[attr-defined]


_END = object()

Told = TypeVar("Told")
Said = TypeVar("Said")


@dataclass(slots=True)
class Child(Generic[Told, Said]):
    """One process; the supervisor sends it `Told` and receives `Said`."""

    process: BaseProcess
    control: Connection
    life: Connection
    """Carries no messages: it closes when the process ends, even if the fork server is dead."""
    _outbox: "SimpleQueue[object]" = field(default_factory=SimpleQueue)
    _sender: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self._sender = threading.Thread(target=self._send, name=f"to {self.name}", daemon=True)
        self._sender.start()

    @classmethod
    def start(cls, name: str, settings: Settings, module: str, *args: object) -> Self:
        """Run the module's `main(*args, pipe)` in a process of its own.

        Raises:
            OSError, EOFError: the system gives no process.
        """
        control, theirs = PROCESSES.Pipe()
        life, its_life = PROCESSES.Pipe(duplex=False)
        how = settings.log_level, settings.log_format
        process = PROCESSES.Process(target=_run, args=(its_life, *how, module, *args, theirs), name=name, daemon=True)
        resource_tracker.ensure_running()  # now, because it unblocks signals
        # The child inherits the blocked signals: from its first moment, this process alone decides when it ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()
            its_life.close()
        return cls(process, control, life)

    @property
    def name(self) -> str:
        """Such as "http-0"."""
        return self.process.name

    def tell(self, message: Told) -> None:
        """Send a message without waiting: the child may hang and its pipe be full."""
        self._outbox.put(message)

    def _send(self) -> None:
        """In a thread: send the messages in order, then close the pipe."""
        with contextlib.suppress(OSError):  # the child has died, as `life` shows
            while (message := self._outbox.get()) is not _END:
                self.control.send(message)
            self._hang_up()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self.control.fileno())) as pipe:
            pipe.shutdown(socket.SHUT_RDWR)

    def hear(self) -> Said | None:
        """One message; None if there is none."""
        with contextlib.suppress(OSError, EOFError):
            if self.control.poll():
                return cast("Said", self.control.recv())
        return None

    def kill(self) -> None:
        """Send SIGKILL."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Close the pipe, which asks the child to end at once; kill it if it does not."""
        self._outbox.put(_END)
        if not self.life.poll(STOP_S):
            self.kill()
            self.life.poll(None)
        self._hang_up()  # the sender may still be sending
        self._sender.join()
        self.control.close()
        self.life.close()
        self.process.join(STOP_S)
        with contextlib.suppress(ChildProcessError):  # it is only ours to wait for if the fork server has died
            os.waitpid(self.pid, 0)

    @property
    def pid(self) -> int:
        """The process's id."""
        return cast("int", self.process.pid)


def _run(_life: Connection, level: str, form: Literal["text", "json"], module: str, *args: object) -> None:
    """Run the module's `main` in the child, whose end closes `_life`."""
    logs.run(level, form, import_module(module).main, *args)
