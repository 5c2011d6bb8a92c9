"""CPUs counted from made-up cgroup files."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest

from server import cpus

V1_OWN = "12:pids:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/docker/abc\n"


def quota(folder: Path, own: str, files: Mapping[str, str]) -> float:
    """The quota of a process in the groups of `own`, if these are the only files."""
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "self").write_text(own)
    return cpus.cgroup_quota(folder / "cgroup", folder / "self")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, math.inf),
        ({"a/b/cpu.max": "50000 100000\n"}, 0.5),
        ({"cpu.max": "max 100000", "a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        ({"a/cpu.max": "200000 100000", "a/b/cpu.max": "800000 100000"}, 2.0),
        ({"a/cpu.max": "800000 100000", "a/b/cpu.max": "200000 100000"}, 2.0),
        ({"a/b/c/cpu.max": "100000 100000", "x/cpu.max": "100000 100000"}, math.inf),
        ({}, math.inf),
    ],
)
def test_version_2_grants_the_tightest_quota_up_to_the_root(
    tmp_path: Path, files: Mapping[str, str], expected: float
) -> None:
    assert quota(tmp_path, "0::/a/b\n", files) == expected


@pytest.mark.parametrize("own", ["0::/\n", "0::/../../elsewhere\n"])
def test_in_a_container_the_root_is_its_own_group(tmp_path: Path, own: str) -> None:
    assert quota(tmp_path, own, {"cpu.max": "300000 100000"}) == 3.0


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "250000\n"}, 2.5),
        ({"cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "-1\n"}, math.inf),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "250000\n"}, 2.5),
        ({"pids/docker/abc/cpu.cfs_quota_us": "250000\n"}, math.inf),
    ],
)
def test_version_1_is_read_from_the_controllers_own_tree(
    tmp_path: Path, files: Mapping[str, str], expected: float
) -> None:
    periods = {name.replace("quota", "period"): "100000\n" for name in files}
    assert quota(tmp_path, V1_OWN, {**files, **periods}) == expected


def test_the_tighter_of_both_versions_counts(tmp_path: Path) -> None:
    files = {
        "cpu,cpuacct/cpu.cfs_quota_us": "400000",
        "cpu,cpuacct/cpu.cfs_period_us": "100000",
        "cpu.max": "300000 100000",
    }
    assert quota(tmp_path, V1_OWN + "0::/\n", files) == 3.0


@pytest.mark.parametrize("content", ["", "max", "half 100000", "100000 0", "1 2 3", "100000 x"])
def test_a_malformed_file_is_no_limit(tmp_path: Path, content: str) -> None:
    assert quota(tmp_path, "0::/a\n", {"a/cpu.max": content, "cpu.max": "400000 100000"}) == 4.0


def test_without_cgroups_there_is_no_limit(tmp_path: Path) -> None:
    assert cpus.cgroup_quota(tmp_path, tmp_path / "missing") == math.inf


@pytest.mark.parametrize(
    ("affinity", "granted", "expected"),
    [(4, math.inf, 4), (4, 2.0, 2), (4, 1.5, 2), (4, 0.25, 1), (2, 8.0, 2), (1, math.inf, 1)],
)
def test_the_smaller_of_affinity_and_quota_counts_rounded_up(
    monkeypatch: pytest.MonkeyPatch, affinity: int, granted: float, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)))
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: granted)
    assert cpus.available_cpus() == expected


def test_flags_are_read_from_the_first_cpu(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nflags\t\t: fpu sse2 avx_vnni\nbugs\t\t: none\n\nprocessor\t: 1\n"
    )
    assert cpus.flags(tmp_path / "cpuinfo") == {"fpu", "sse2", "avx_vnni"}
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nFeatures\t: fp asimd i8mm\n")
    assert cpus.flags(tmp_path / "cpuinfo") == {"fp", "asimd", "i8mm"}
    assert cpus.flags(tmp_path / "none") == set()


def written(root: Path, nodes: dict[int, str], siblings: dict[int, str]) -> Path:
    for folder, lists, name in (
        ("node/node", nodes, "cpulist"),
        ("cpu/cpu", siblings, "topology/thread_siblings_list"),
    ):
        for number, content in lists.items():
            path = root / f"{folder}{number}" / name
            path.parent.mkdir(parents=True)
            path.write_text(f"{content}\n")
    return root


def test_cpus_are_told_by_node_with_those_of_one_core_side_by_side(tmp_path: Path) -> None:
    siblings = {cpu: f"{cpu % 4},{cpu % 4 + 4}" for cpu in range(8)}
    root = written(tmp_path, {0: "0-1,4-5", 1: "2-3,6-7", 2: ""}, siblings)
    with mock.patch("os.sched_getaffinity", return_value=set(range(8))):
        assert cpus.nodes(root) == ((0, 4, 1, 5), (2, 6, 3, 7))
    with mock.patch("os.sched_getaffinity", return_value={1, 2}):
        assert cpus.nodes(root) == ((1,), (2,))
    with mock.patch("os.sched_getaffinity", return_value={1, 9}):  # a CPU of no node: the nodes are unknown
        assert cpus.nodes(root) == ((1, 9),)
        assert cpus.nodes(tmp_path / "none") == ((1, 9),)
