"""What load tests read of a machine, even one that reports less than Linux does."""

import os
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from loadtest import machine, processes


class _LinuxTimes(NamedTuple):
    user: float
    idle: float
    iowait: float


class _OtherTimes(NamedTuple):
    user: float
    idle: float


class _OtherMemory(NamedTuple):
    rss: int
    uss: int


def test_cpu_time_that_waits_for_disks_is_idle_where_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for times in (_LinuxTimes(5.0, 70.0, 20.0), _OtherTimes(5.0, 90.0)):
        monkeypatch.setattr(psutil, "cpu_times", lambda times=times: times)
        assert machine.read_meters(None).machine == 5.0


def test_cpus_have_a_number_and_a_name_without_proc_and_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(machine, "CPUINFO", Path("/nowhere/cpuinfo"))
    assert machine.usable_cpus() == os.cpu_count()
    assert machine.cpu_name()


def test_memory_is_what_each_process_has_alone_where_shares_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "memory_full_info", lambda _: _OtherMemory(30, 20))
    assert processes.pss_bytes([psutil.Process()] * 2) == 40
