"""The server without anything that only Linux has: a stand-in for other systems."""

import os
import resource
import select
import socket
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from server import cpus, descriptors, doctor, portable, tls
from server.listeners import Listeners
from server.placement import Machine, Place, place
from server.settings import Settings
from server.slots import Slots, more_room
from tests import tiny
from tests.server.certificates import written
from tests.server.running import ROOT, RunningServer, red_image, top1

ELSEWHERE = """
import os, select, signal, sys
from multiprocessing import util

for module, prefixes in (
    (os, ("EFD_", "MFD_", "eventfd", "getrandom", "memfd_", "pidfd_", "posix_fa", "sched_", "splice", "O_TMPFILE")),
    (select, ("EPOLL", "epoll")),
    (signal, ("pidfd_", "sigtimedwait", "sigwaitinfo")),
):
    for name in [name for name in vars(module) if name.startswith(prefixes)]:
        delattr(module, name)
util.abstract_sockets_supported = False

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/", "/dev/shm")):
        raise FileNotFoundError(2, "not on this system", arguments[0])

sys.addaudithook(refuse)

from server import portable
portable.LINUX = False
"""
"""Every Python process runs this first, including children."""


class ServerElsewhere(RunningServer):
    """A server from whose processes Linux's own features are hidden."""

    def environment(self) -> Mapping[str, str]:
        (self._folder / "sitecustomize.py").write_text(ELSEWHERE)
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self._folder), str(ROOT)])}


def open_by(process: psutil.Process) -> set[str]:
    """The files behind its descriptors and its memory maps."""
    links = [link.readlink() for link in Path(f"/proc/{process.pid}/fd").iterdir()]
    maps = Path(f"/proc/{process.pid}/maps").read_text().splitlines()
    return {*map(str, links), *(line.partition("/")[2] for line in maps)}


def test_a_server_without_what_only_linux_has_keeps_its_promises(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with ServerElsewhere(tmp_path, http_workers=2, engines=2) as server:
        assert top1(server.classify(red_image(1))) == 1
        engine = psutil.Process(server.pid("engine-0"))
        assert engine.ppid() == server.process.pid  # not forked by a fork server
        found = open_by(engine)
        assert not [each for each in found if "eventpoll" in each or "eventfd" in each or "dev/shm" in each]
        assert engine.cpu_affinity() == psutil.Process().cpu_affinity()
        server.kill_child("engine-0")
        server.kill_child("http-0")
        server.wait_for_line("engine-0 ended with exit code -9")
        reds = list(range(40))
        assert [top1(answer) for answer in server.classify_all([red_image(red) for red in reds], 8)] == reds
        children = server.tree()
        assert server.terminate() == 0
        assert not psutil.wait_procs(children, timeout=5)[1]


def test_room_is_taken_by_writing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with (tmp_path / "file").open("wb") as file:
        portable.reserve(file, 2**21 + 5)
    assert (tmp_path / "file").read_bytes() == bytes(2**21 + 5)
    full = Path("/dev/full")
    with pytest.raises(OSError, match="No space left"), full.open("r+b", buffering=0) as file:
        portable.reserve(file, 5)


def test_slots_that_are_no_shared_memory_are_files_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portable, "LINUX", False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    slots = Slots(2, 12)
    slots.pixels(1, (2, 2, 3))[...] = 9
    assert not list(tmp_path.iterdir())
    assert more_room() == f"free some of {tmp_path}"


@pytest.mark.parametrize("has_eventfd", [True, False])
def test_a_bell_may_ring_as_often_as_it_likes(monkeypatch: pytest.MonkeyPatch, *, has_eventfd: bool) -> None:
    if not has_eventfd:
        monkeypatch.delattr(os, "eventfd")
    bell = portable.Bell()
    for _ in range(20_000):  # more than fit into a pipe
        bell.ring()
    while select.select([bell], [], [], 0)[0]:
        bell.silence()
    bell.ring()
    assert select.select([bell], [], [], 0)[0]


@pytest.mark.parametrize("has_epoll", [True, False])
def test_a_poller_tells_what_can_be_read_and_written(monkeypatch: pytest.MonkeyPatch, *, has_epoll: bool) -> None:
    if not has_epoll:
        monkeypatch.delattr(select, "epoll")
    poller = portable.poller()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poller.register(ours.fileno(), select.POLLIN)
        assert poller.poll(0.001) == []
        theirs.send(b"!")
        assert poller.poll(1.0) == [(ours.fileno(), select.POLLIN)]
        poller.modify(ours.fileno(), select.POLLIN | select.POLLOUT)
        assert poller.poll(0) == [(ours.fileno(), select.POLLIN | select.POLLOUT)]
        poller.unregister(ours.fileno())
        assert poller.poll(0) == []


def test_cpus_that_nobody_can_be_kept_to_are_counted_and_not_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: float("inf"))
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    assert (cpus.available_cpus(), cpus.nodes()) == (32, ())
    machine = Machine(cpus.nodes(), cpus.available_cpus(), ())
    assert place(None, machine, on_gpus=False) == (Place("engine"),)
    assert place(2, machine, on_gpus=False) == (Place("engine-0", threads=16), Place("engine-1", threads=16))


@pytest.mark.parametrize(
    ("granted", "connections"), [(100_000, 8192), (descriptors.OPEN_MAX, 4992), (0, 22)], ids=["all", "some", "none"]
)
def test_a_system_that_names_no_limit_and_has_one_grants_what_it_can(
    monkeypatch: pytest.MonkeyPatch, granted: int, connections: int
) -> None:
    def set_limit(_: int, limits: tuple[int, int]) -> None:
        if limits[0] > granted:
            raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (300, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    assert descriptors.provide(Settings(max_connections=8192)).max_connections == connections


def test_a_kernel_that_gives_all_connections_to_one_socket_is_shown_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "LINUX", False)
    with Listeners.open(Settings(port=0, http_workers=2)) as listeners:
        first, second = listeners.sockets
        assert os.path.sameopenfile(first.fileno(), second.fileno())
        with socket.create_connection(first.getsockname()[:2]):
            first.close()
            second.accept()[0].close()


def test_a_certificate_needs_no_file_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert tls.read(*written(tmp_path)).chain.startswith(b"-----BEGIN CERTIFICATE")


def test_a_doctor_tells_of_a_machine_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEMINFO", tmp_path / "none")
    monkeypatch.setattr(cpus, "CPUINFO", tmp_path / "none")
    report = doctor.examine(Settings(repository=tmp_path))
    assert "cannot be told" not in {*report.sections["cpu"], *report.sections["memory"]}
    assert report.sections["memory"]["total"] == report.sections["memory"]["available"]
