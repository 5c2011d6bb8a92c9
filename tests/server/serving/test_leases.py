"""The proof that no request needs a model any more."""

from contextlib import ExitStack

from server.serving.leases import Leases


def test_a_model_is_drained_with_the_end_of_its_last_request_and_told_once() -> None:
    leases, told = Leases(), list[str]()
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(leases.on(["old"]))
        second.enter_context(leases.on(["old", "new"]))
        leases.when_drained({"new"}, lambda: told.append("drained"))
        first.close()
        assert not told
        second.close()
        assert told == ["drained"]
    with leases.on(["new"]):
        pass
    assert told == ["drained"]


def test_what_nobody_needs_is_drained_at_once() -> None:
    leases, told = Leases(), list[str]()
    with leases.on(["kept"]):
        leases.when_drained({"kept"}, lambda: told.append("drained"))
    assert told == ["drained"]


def test_only_the_newest_catalogue_counts() -> None:
    leases, told = Leases(), list[int]()
    with leases.on(["a"]):
        leases.when_drained({"b"}, lambda: told.append(1))
        with leases.on(["b"]):
            leases.when_drained({"c"}, lambda: told.append(2))
        assert not told
    assert told == [2]
