"""The file of API keys, and what each key may do."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Code
from server.keys import Keys, KeysError, RefusedError, bearer, read, usage_table
from tests.server.running import ROOT

SECRET, OTHER = b"rsk_first", b"rsk_second"


def line(name: str, secret: bytes = SECRET, options: str = "") -> str:
    return f"{name} {hashlib.sha256(secret).hexdigest()} {options}\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.txt"


def test_a_file_says_who_may_do_how_much(path: Path) -> None:
    path.write_text(
        "# whose\n\n" + line("shop", options="rate=0.5 burst=3 concurrent=2 # the web") + line("ops", OTHER)
    )
    shop, ops = read(path)
    assert (shop.name, shop.role, shop.rate, shop.burst, shop.concurrent) == ("shop", "classify", 0.5, 3, 2)
    assert (ops.rate, ops.burst, ops.concurrent) == (math.inf, None, None)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "no key in it"),
        ("shop", "line 1: must be NAME"),
        ("shop rsk_not-a-hash", "line 1: sha256"),
        (line("a") + line("b"), "equal hashes"),
        (line("a") + line("a", OTHER), "equal names"),
        (line("a", options="role=root"), "role: Input should be 'classify' or 'admin'"),
        (line("a", options="role=classify role=admin"), "an option is given twice"),
        (line("a", options="rate=nan"), "rate"),
        (line("a", options="burst=0"), "burst"),
        (line("a", options="speed=9"), "speed"),
        (line("ä"), "not ASCII"),
        ("#" * 2**19, "over"),
    ],
)
def test_a_line_that_is_wrong_is_named(path: Path, content: str, complaint: str) -> None:
    path.write_text(content)
    with pytest.raises(KeysError, match=complaint) as raised:
        read(path)
    assert "rsk_" not in str(raised.value)  # a key in the place of its hash must not get into logs


def known(path: Path, content: str, worker: int = 0) -> Keys:
    """The keys of one HTTP worker of two."""
    path.write_text(content)
    usage = usage_table(path.parent, 2)
    usage.keep([key.sha256 for key in read(path)])
    return Keys(read(path), worker, usage)


@pytest.mark.parametrize("sent", [None, b"", b"rsk_", SECRET + b" ", SECRET.upper(), OTHER])
def test_only_the_very_key_is_known(path: Path, sent: bytes | None) -> None:
    keys = known(path, line("shop"))
    with pytest.raises(RefusedError) as raised:
        keys.account(sent, "classify")
    assert raised.value.code is Code.UNAUTHORIZED
    assert keys.account(SECRET, "classify").key.name == "shop"


def test_an_admin_may_classify_and_others_may_not_load(path: Path) -> None:
    keys = known(path, line("shop") + line("ops", OTHER, "role=admin"))
    assert keys.account(OTHER, "classify") is keys.account(OTHER, "admin")
    with pytest.raises(RefusedError, match="has the role classify") as raised:
        keys.account(SECRET, "admin")
    assert raised.value.code is Code.FORBIDDEN


def admitted(keys: Keys, at_s: float) -> bool:
    try:
        with keys.account(SECRET, "classify").enter(at_s):
            return True
    except RefusedError:
        return False


def test_a_rate_holds_in_the_long_run_and_a_burst_after_a_pause(path: Path) -> None:
    keys = known(path, line("shop", options="rate=2 burst=3"))
    assert [admitted(keys, 100.0) for _ in range(5)] == [True, True, True, False, False]
    assert [admitted(keys, 100.5) for _ in range(2)] == [True, False]
    assert [admitted(keys, 999.0) for _ in range(4)] == [True, True, True, False]


def test_a_refusal_says_when_to_come_back(path: Path) -> None:
    account = known(path, line("shop", options="rate=0.1")).account(SECRET, "classify")
    account.enter(50.0)
    with pytest.raises(RefusedError) as raised:
        account.enter(52.0)
    assert (raised.value.code, raised.value.retry_after_s) == (Code.RATE_LIMITED, 8)
    account.enter(60.0)


def test_places_are_given_back(path: Path) -> None:
    account = known(path, line("shop", options="concurrent=2")).account(SECRET, "classify")
    with account.enter(0.0):
        with account.enter(0.0), pytest.raises(RefusedError, match="2 requests under way"):
            account.enter(0.0)
        account.enter(0.0)


def test_limits_are_those_of_all_workers_together(path: Path) -> None:
    first = known(path, line("shop", options="rate=1 burst=3 concurrent=2"))
    second = known(path, path.read_text(), worker=1)
    with first.account(SECRET, "classify").enter(0.0), second.account(SECRET, "classify").enter(0.0):
        assert not admitted(first, 0.0)
        assert not admitted(second, 0.0)
    assert [admitted(first, 0.0), admitted(second, 0.0), admitted(second, 1.0)] == [True, False, True]


def test_a_worker_that_died_has_nothing_under_way(path: Path) -> None:
    first = known(path, line("shop", options="concurrent=2"))
    dead = known(path, path.read_text(), worker=1)
    with first.account(SECRET, "classify").enter(0.0):
        dead.account(SECRET, "classify").enter(0.0)
        assert not admitted(first, 0.0)
        usage_table(path.parent, 2).clear(1)
        with first.account(SECRET, "classify").enter(0.0):
            assert not admitted(first, 0.0)


def test_a_key_that_was_removed_has_no_row_and_what_stays_keeps_its_own(path: Path) -> None:
    keys = known(path, line("shop", options="concurrent=1") + line("ops", OTHER, options="concurrent=1"))
    with keys.account(SECRET, "classify").enter(0.0), keys.account(OTHER, "classify").enter(0.0):
        left = known(path, line("ops", OTHER, options="concurrent=1"))
        assert admitted(keys, 0.0)  # by a worker that has not heard of it yet
        with pytest.raises(RefusedError):
            left.account(OTHER, "classify").enter(0.0)
        again = known(path, path.read_text() + line("shop", options="concurrent=1"))
        again.account(SECRET, "classify").enter(0.0)
        assert not admitted(again, 0.0)


def test_a_higher_rate_counts_from_then_on(path: Path) -> None:
    keys = known(path, line("shop", options="rate=0.01 burst=60"))
    assert all(admitted(keys, 0.0) for _ in range(60))
    path.write_text(line("shop", options="rate=100 burst=200"))
    keys.replace(read(path))
    with pytest.raises(RefusedError) as raised:
        keys.account(SECRET, "classify").enter(0.0)
    assert raised.value.retry_after_s == 1
    assert admitted(keys, 0.01)


def tokens(entered_s: list[float], now_s: float, rate: float, burst: int) -> float:
    """The tokens left in a bucket that was full at the beginning."""
    left, counted_s = float(burst), 0.0
    for at_s in entered_s:
        left = min(burst, left + (at_s - counted_s) * rate) - 1
        counted_s = at_s
    return min(burst, left + (now_s - counted_s) * rate)


@settings(max_examples=100, deadline=None)
@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 10), max_size=60),
    workers=st.randoms(use_true_random=False),
)
def test_never_more_than_the_burst_and_the_rate_since(
    rate: float, burst: int, pauses: list[float], workers: Random
) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "keys.txt"
        both = [known(path, line("shop", options=f"rate={rate} burst={burst}"), worker) for worker in range(2)]
        now_s, entered_s = 1000.0, list[float]()
        for pause_s in pauses:
            now_s += pause_s / rate
            left = tokens(entered_s, now_s, rate, burst)
            may = admitted(workers.choice(both), now_s)
            assert left > 1 - 1e-3 if may else left < 1 + 1e-3
            entered_s += [now_s] * may


def test_new_limits_leave_what_was_used(path: Path) -> None:
    keys = known(path, line("shop", options="concurrent=1"))
    keys.account(SECRET, "classify").enter(0.0)
    path.write_text(line("store", options="concurrent=2"))
    keys.replace(read(path))
    account = keys.account(SECRET, "classify")
    account.enter(0.0)
    with pytest.raises(RefusedError, match="key store already has 2"):
        account.enter(0.0)


def test_bearer_is_the_only_scheme() -> None:
    assert bearer(b"bEaReR rsk_x") == b"rsk_x"
    assert [bearer(field) for field in (b"", b"Bearer", b"Basic rsk_x", b"rsk_x")] == [b""] * 4


def test_a_key_that_was_made_is_known(path: Path) -> None:
    command = [sys.executable, "-m", "server.keys", "new", "shop", "--role", "admin", "--rate", "7"]
    made = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True) for _ in range(2)]
    assert made[0].stdout != made[1].stdout
    secret = made[0].stderr.split()[-1]
    assert secret not in made[0].stdout
    account = known(path, made[0].stdout).account(secret.encode(), "admin")
    assert (account.key.name, account.key.rate) == ("shop", 7)


def test_a_key_that_cannot_be_is_not_made() -> None:
    command = [sys.executable, "-m", "server.keys", "new", "the shop"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name: " in done.stderr
