"""Which CPUs and GPUs each engine owns."""

import os
from unittest import mock

import pytest

from server.engine import process
from server.placement import MANY_CPUS, Machine, Place, place
from server.settings import Settings

GPUS = ("GPU-a", "GPU-b")


def machine(*nodes: int, granted: int | None = None, gpus: tuple[str, ...] = ()) -> Machine:
    """A machine with these numbers of CPUs in its nodes, numbered from 0."""
    firsts = [sum(nodes[:at]) for at in range(len(nodes))]
    cpus = tuple(tuple(range(first, first + count)) for first, count in zip(firsts, nodes, strict=True))
    return Machine(cpus, sum(nodes) if granted is None else granted, gpus)


def test_one_engine_on_cpus_has_all_of_them_as_ever() -> None:
    assert place(None, machine(4), on_gpus=False) == (Place("engine"),)
    assert place(1, machine(4, 4), on_gpus=False) == (Place("engine"),)


def test_by_default_there_is_one_engine_for_each_gpu_and_with_many_cpus_one_for_each_node() -> None:
    both = machine(8, 8, gpus=GPUS)
    assert [(each.name, each.gpu) for each in place(None, both, on_gpus=True)] == [
        ("engine-0", "GPU-a"),
        ("engine-1", "GPU-b"),
    ]
    assert [each.cpus for each in place(None, both, on_gpus=False)] == [tuple(range(8)), tuple(range(8, 16))]
    assert len(place(None, machine(8, 7), on_gpus=False)) == 1
    assert len(place(None, machine(32, 32, granted=MANY_CPUS - 1), on_gpus=False)) == 1
    assert len(place(None, machine(64), on_gpus=False)) == 1


def test_a_single_gpu_and_one_that_nobody_can_name_are_used_as_ever() -> None:
    assert place(None, machine(4, gpus=GPUS[:1]), on_gpus=True) == (Place("engine", on_gpu=True),)
    assert place(None, machine(64, 64), on_gpus=True) == (Place("engine", on_gpu=True),)


def test_an_engine_knows_that_its_models_take_the_memory_of_a_gpu_also_of_the_only_one() -> None:
    for gpus in ((), GPUS[:1], GPUS):
        assert all(each.on_gpu for each in place(None, machine(4, gpus=gpus), on_gpus=True))
        assert not any(each.on_gpu for each in place(2, machine(4, gpus=gpus), on_gpus=False))


def test_fewer_or_more_engines_than_gpus_are_what_was_asked_for() -> None:
    several = machine(4, gpus=GPUS)
    assert place(1, several, on_gpus=True) == (Place("engine", "GPU-a", on_gpu=True),)
    assert [each.gpu for each in place(3, several, on_gpus=True)] == ["GPU-a", "GPU-b", "GPU-a"]
    assert [each.gpu for each in place(2, machine(4, gpus=GPUS[:1]), on_gpus=True)] == ["GPU-a"] * 2


@pytest.mark.parametrize(
    ("nodes", "engines", "shares"),
    [
        ((4,), 2, ["0-1", "2-3"]),
        ((5,), 2, ["0-2", "3-4"]),
        ((4, 4), 2, ["0-3", "4-7"]),
        ((4, 4), 4, ["0-1", "2-3", "4-5", "6-7"]),
        ((6, 2), 4, ["0-1", "2-3", "4-5", "6-7"]),
        ((4, 4), 3, ["0-1", "2-3", "4-7"]),
        ((2, 2, 2, 2), 2, ["0-3", "4-7"]),
    ],
)
def test_shares_of_cpus_straddle_no_two_nodes(nodes: tuple[int, ...], engines: int, shares: list[str]) -> None:
    found = place(engines, machine(*nodes), on_gpus=False)
    assert [each.device for each in found] == [f"cpus {share}" for share in shares]
    assert [each.threads for each in found] == [min(len(each.cpus), sum(nodes) // engines) for each in found]


def test_what_a_container_is_granted_is_shared_out_as_threads() -> None:
    found = place(2, machine(64, granted=4), on_gpus=False)
    assert [(len(each.cpus), each.threads) for each in found] == [(32, 2), (32, 2)]
    assert [(each.cpus, each.threads) for each in place(3, machine(2), on_gpus=False)] == [((), 1)] * 3


def test_a_place_says_what_it_is() -> None:
    assert str(Place("engine-1", cpus=(0, 1, 2, 8))) == "engine-1 (cpus 0-2,8)"
    assert (Place("engine").device, Place("engine-0", "MIG-1").device) == ("all", "MIG-1")


def test_an_engine_sees_no_other_gpu_and_keeps_to_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,MIG-1")
    process._settled(Place("engine-1", "MIG-1"), Settings())
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "MIG-1"
    with mock.patch("os.sched_setaffinity") as pinned:
        assert process._settled(Place("engine-1", cpus=(2, 3), threads=2), Settings()).inference_threads == 2
        asked_for = process._settled(Place("engine-1", cpus=(2, 3), threads=2), Settings(inference_threads=5))
    assert asked_for.inference_threads == 5
    assert pinned.call_args_list == [mock.call(0, (2, 3))] * 2
