"""Remembered answers: how many, and for which requests."""

import os
import signal
from pathlib import Path

import httpx
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.classes import Classes
from server.serving.cache import Cache, Key
from tests import tiny
from tests.server.http.packing import zipped
from tests.server.running import RunningServer, red_image, until


def key(number: int) -> Key:
    return number.to_bytes(32, "big"), ("model",), 5, 1, None, False


def answer(number: int) -> Classes:
    indices = np.array([number], np.int32)
    return Classes(np.ones(1, np.float32), indices, np.empty(0, np.float32), 1.0, 1.0, 8, 1.0, 1.0)


@settings(deadline=None)
@given(size=st.integers(1, 4), asked=st.lists(st.integers(0, 7), max_size=40))
def test_the_most_recently_used_are_remembered_and_no_more(size: int, asked: list[int]) -> None:
    cache, recent = Cache(size), list[int]()
    for number in asked:
        found = cache.get(key(number))
        assert (found is not None) == (number in recent)
        if found is None:
            cache.put(key(number), answer(number))
        else:
            assert found.indices.tolist() == [number]
            assert found.decode_wait_s + found.decode_s + found.queue_s + found.inference_s + found.batch_size == 0
        recent = [*(other for other in recent if other != number), number][-size:]
        assert len(cache) == len(recent)


def told(response: httpx.Response) -> tuple[int, str]:
    """The best class, and whether the answer was remembered."""
    assert response.status_code == 200, response.text
    return response.json()["predictions"][0]["class_id"], response.headers["X-Cache"]


def test_an_image_that_comes_again_needs_no_engine_until_its_model_changes(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    tiny.write(repository, "other", channel=1)
    with RunningServer(repository, reload_ms=100, default_model="tiny", cache_entries=100) as server:
        assert told(server.classify(red_image(9))) == (9, "miss")
        assert told(server.classify(red_image(9), top_k=4)) == (9, "miss")
        assert told(server.classify(red_image(9), crops=10)) == (9, "miss")
        assert told(server.classify(red_image(9), model="other")) == (0, "miss")
        first = server.classify(red_image(8)).json()
        assert server.classify(b"no image").status_code == server.classify(b"no image").status_code == 415

        engine = server.pid("engine")
        os.kill(engine, signal.SIGSTOP)
        again = server.client.post("/classify", files={"file": ("a.png", red_image(8))})
        assert told(again) == (8, "hit")
        assert told(server.classify(red_image(9), crops=10)) == (9, "hit")
        batch = server.client.post("/classify/batch", content=zipped([("a", red_image(8)), ("b", red_image(9))]))
        os.kill(engine, signal.SIGCONT)

        assert [each["classification"]["batch_size"] for each in batch.json()["results"]] == [0, 0]
        assert again.json()["predictions"] == first["predictions"]
        timings = again.json()["timings_ms"]
        assert timings.pop("total") > 0
        assert set(timings.values()) == {0}
        assert again.json()["request_id"] != first["request_id"]
        assert server.metric("serving_cache_hits_total", model="tiny") == 4
        assert server.metric("serving_cache_misses_total", model="tiny") == 4
        assert server.metric("serving_requests_total", code="ok") == 9

        tiny.write(tmp_path / "aside", "tiny", 1, channel=2)  # another file under the same name
        (repository / "tiny").rename(tmp_path / "old")
        (tmp_path / "aside" / "tiny").rename(repository / "tiny")
        until(lambda: server.classify(red_image(8)).json()["predictions"][0]["class_id"] == 0)


def test_nothing_is_remembered_unless_it_is_asked_for(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path) as server:
        for _ in range(2):
            response = server.classify(red_image(9))
            assert response.json()["batch_size"] == 1
            assert "X-Cache" not in response.headers
