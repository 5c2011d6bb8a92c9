import json
import re

import numpy as np
import pytest

from loadtest.compare import environments
from loadtest.compare.servers import RIVALS, SERVERS, Server
from loadtest.responses import WrongAnswerError

CLASSES = [7, 1, 2, 3, 4]
PROBABILITIES = [0.5, 0.25, 0.125, 0.0625, 0.0]
ANSWER = {"classes": CLASSES, "probabilities": PROBABILITIES}
TRITON_HEAD = json.dumps({"outputs": [{"name": "classes"}, {"name": "probabilities"}]}).encode()


def rival(name: str) -> Server:
    return next(server for server in SERVERS if server.name == name)


def triton_body(classes: list[int], probabilities: list[float]) -> bytes:
    return TRITON_HEAD + np.array(classes, "<i4").tobytes() + np.array(probabilities, "<f4").tobytes()


@pytest.mark.parametrize("name", RIVALS)
def test_all_that_a_rival_runs_with_is_pinned_and_nothing_of_it_is_torch(name: str) -> None:
    pins = environments.requirements(name).read_text().splitlines()
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==\S+", pin) for pin in pins)
    assert not any(pin.startswith("torch") for pin in pins)
    assert re.search(r" \d+\.\d+", rival(name).title)


@pytest.mark.parametrize("name", RIVALS)
def test_each_rival_has_a_plain_and_a_tuned_variant(name: str) -> None:
    assert [server.variant for server in SERVERS if server.name == name] == ["plain", "tuned"]


def test_rivals_answers_are_read() -> None:
    assert rival("mosec").parse(200, json.dumps(ANSWER).encode()).top1 == 7
    assert rival("triton").parse(200, triton_body(CLASSES, PROBABILITIES)).top1 == 7
    assert rival("triton").parse(200, triton_body([0x7D7D7D7D] * 5, [0.0] * 5)).top1 == 0x7D7D7D7D  # all of it "}"


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        ("mosec", 500, b"broken"),
        ("mosec", 200, b"[]"),
        ("mosec", 200, json.dumps(ANSWER | {"probabilities": [0.5, 0.6, 0, 0, 0]}).encode()),
        ("triton", 200, TRITON_HEAD),
        ("triton", 200, triton_body([1] * 5, [0.5] * 5)),
    ],
)
def test_wrong_answers_are_noticed(name: str, status: int, body: bytes) -> None:
    with pytest.raises(WrongAnswerError):
        rival(name).parse(status, body)
