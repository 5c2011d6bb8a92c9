"""Formats of an answer: which one a client gets, and its contents."""

import msgspec
import pytest

from server.http import responses
from server.http.responses import prefers_msgpack
from tests.server.running import RunningServer, red_image


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("application/msgpack", True),
        ("Application/MsgPack", True),
        ("application/msgpack, */*", True),
        ("application/msgpack, application/json;q=0.5", True),
        ("application/json; q=0.5,application/msgpack ; q=0.6", True),
        ("application/msgpack, application/json", False),
        ("application/msgpack;q=0.1, */*", False),
        ("application/msgpack;q=0.1, application/*;q=0.2", False),
        ("application/msgpack;q=0", False),
        ("application/msgpack;q=nonsense", False),
        ("application/msgpackish", False),
        ("application/json", False),
        ("*/*", False),
        ("text/html", False),
        (";;,,=", False),
        ("", False),
    ],
)
def test_msgpack_is_for_those_who_prefer_it(accept: str, expected: bool) -> None:
    assert prefers_msgpack(accept) is expected


def test_both_formats_say_the_same(server: RunningServer) -> None:
    kinds: list[tuple[str, type[responses.Classification | responses.ClassificationBatch]]] = [
        ("/classify", responses.Classification),
        ("/classify/batch", responses.ClassificationBatch),
    ]
    for path, kind in kinds:
        for accept in ("application/msgpack", "text/html", "application/json"):
            content = {"file": ("a.png", red_image(7))}
            response = server.client.post(path, files=content, headers={"Accept": accept})
            packed = accept == "application/msgpack"
            assert response.headers["content-type"] == ("application/msgpack" if packed else "application/json")
            decode = msgspec.msgpack.decode if packed else msgspec.json.decode
            found = decode(response.content, type=kind)
            one = found if isinstance(found, responses.Classification) else found.results[0].classification
            assert one is not None
            assert (one.model, one.predictions[0].class_id, len(one.predictions)) == ("tiny", 7, 5)
    refused = server.client.post("/classify", content=b"", headers={"Accept": "application/msgpack"})
    assert refused.headers["content-type"] == "application/problem+json"


def test_what_is_described_is_what_is_sent() -> None:
    schemas = responses.schemas()
    sent = msgspec.to_builtins(responses.BATCH_EXAMPLE)
    result = sent["results"][0]
    for name, value in {
        "ClassificationBatch": sent,
        "ImageResult": result,
        "ImageProblem": sent["results"][1]["problem"],
        "Classification": result["classification"],
        "Prediction": result["classification"]["predictions"][0],
        "Timings": result["classification"]["timings_ms"],
    }.items():
        required = schemas[name]["required"]
        assert list(value) == list(schemas[name]["properties"])[: len(required)] == required
    optional = set(schemas["Classification"]["properties"]) - set(schemas["Classification"]["required"])
    assert optional >= {"answered_by", "cut_short", "coverage", "known"}  # sent only if they say something
