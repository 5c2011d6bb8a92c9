import json
from typing import Any

import pytest

from loadtest import responses
from loadtest.responses import Answer, WrongAnswerError


def body(*probabilities: float, **changes: Any) -> bytes:
    predictions = [{"class_id": index, "probability": value} for index, value in enumerate(probabilities)]
    return json.dumps({"model": "m", "predictions": predictions, "batch_size": 2, **changes}).encode()


def test_right_answer_is_read() -> None:
    assert responses.parse(200, body(0.5, 0.2, 0.2, 0.1, 0.0)) == Answer("m", 0, 2)


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (503, b"engine_unavailable", "status 503: engine_unavailable"),
        (200, b"<html>", "not an answer"),
        (200, b"{}", "not an answer"),
        (200, body(0.5, 0.2, 0.2, 0.1, 0.0, predictions=None), "not an answer"),
        (200, body(0.5, 0.2, 0.2, 0.1), "4 predictions"),
        (200, body(0.2, 0.5, 0.2, 0.1, 0.0), "falling order"),
        (200, body(0.5, 0.4, 0.2, 0.1, 0.0), "falling order"),
    ],
)
def test_wrong_answer_is_named(status: int, content: bytes, reason: str) -> None:
    with pytest.raises(WrongAnswerError, match=reason):
        responses.parse(status, content)
