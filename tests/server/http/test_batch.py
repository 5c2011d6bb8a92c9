"""Several images in one request, over real HTTP."""

import gzip
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests import tiny
from tests.server.http.packing import tarred, zipped
from tests.server.running import GatedServer, RunningServer, red_image, until

MAX_BODY_BYTES = 200_000
MAX_IMAGES = 40
SOME = [("a.png", red_image(1)), ("b.png", red_image(2)), ("a.png", red_image(3))]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Has four places, so that most batches are larger than all of them."""
    repository = tmp_path_factory.mktemp("repository")
    red, green = tiny.write(repository), tiny.write(repository, "green", channel=1)
    tiny.write_ensemble(repository, "both", [red, green])
    with RunningServer(
        repository,
        default_model="tiny",
        queue_size=4,
        max_body_bytes=MAX_BODY_BYTES,
        max_batch_images=MAX_IMAGES,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatedServer]:
    """Has eight places, of which batches take four, and runs one image at a time."""
    repository = tmp_path_factory.mktemp("eight")
    tiny.write(repository)
    with GatedServer(repository, queue_size=8, max_batch=1, decode_threads=8) as running:
        yield running


def post(server: RunningServer, body: bytes, **parameters: Any) -> httpx.Response:
    return server.client.post("/classify/batch", content=body, params=parameters)


def classes(response: httpx.Response) -> list[tuple[str, int | str]]:
    """The name of each result, with its best class or the code of its problem."""
    assert response.status_code == 200, response.text
    found: list[tuple[str, int | str]] = []
    for result in response.json()["results"]:
        answer, problem = result["classification"], result["problem"]
        assert (answer is None) != (problem is None)
        found.append((result["name"], answer["predictions"][0]["class_id"] if answer else problem["code"]))
    return found


def test_a_zip_is_answered_in_its_order(server: RunningServer) -> None:
    response = post(server, zipped(SOME))
    assert classes(response) == [("a.png", 1), ("b.png", 2), ("a.png", 3)]
    assert response.json()["request_id"] == response.headers["X-Request-ID"]


def test_a_zip_may_be_the_only_file_of_a_form(server: RunningServer) -> None:
    def sent(*files: tuple[str, bytes]) -> httpx.Response:
        return server.client.post("/classify/batch", files=[("file", file) for file in files], data={"top_k": "2"})

    response = sent(("photos.zip", zipped(SOME)))
    assert classes(response) == [("a.png", 1), ("b.png", 2), ("a.png", 3)]
    assert len(response.json()["results"][0]["classification"]["predictions"]) == 2
    assert classes(sent(("photos.zip", zipped(SOME)), SOME[0])) == [("photos.zip", "not_an_image"), ("a.png", 1)]
    assert sent(("photos.zip", zipped([("big", bytes(MAX_BODY_BYTES + 1))]))).json()["code"] == "body_too_large"
    assert sent(("photos.zip", zipped(SOME)[:-30])).json()["code"] == "invalid_request"


def test_a_form_is_answered_in_its_order_and_each_image_has_its_own_outcome(server: RunningServer) -> None:
    files = [
        ("file", ("\u00e4.png", red_image(7))),
        ("file", ("text", b"not an image")),
        ("more", ("", b"")),
        ("file", ("cut.png", red_image(8)[:-40])),
        ("file", ("../../x", red_image(9))),
    ]
    response = server.client.post("/classify/batch", files=files, data={"comment": "hello"})
    assert classes(response)[:2] == [("\u00e4.png", 7), ("text", "not_an_image")]
    assert classes(response)[-2:] == [("cut.png", "broken_image"), ("../../x", 9)]


def test_a_result_is_what_the_image_alone_is_answered_with(server: RunningServer) -> None:
    parameters: dict[str, Any] = {"top_k": 3, "model": "green", "priority": "low"}
    alone = server.classify(red_image(5), **parameters).json()
    (result,) = post(server, zipped([("a", red_image(5))]), **parameters).json()["results"]
    assert result["classification"].keys() == alone.keys()
    for name in ("model", "version", "predictions", "random_weights"):
        assert result["classification"][name] == alone[name]


@pytest.mark.parametrize("parameters", [{}, {"model": "both"}], ids=["one model", "an ensemble"])
def test_a_batch_may_be_larger_than_all_places(server: RunningServer, parameters: dict[str, Any]) -> None:
    members = [(str(red), red_image(red)) for red in range(MAX_IMAGES)]
    found = classes(post(server, zipped(members[:10] if parameters else members), **parameters))
    if parameters:
        assert all(isinstance(best, int) for _, best in found)
    else:
        assert found == [(str(red), red) for red in range(MAX_IMAGES)]
    until(lambda: server.metric("serving_pending_requests") == 0)


def test_an_image_that_needs_more_places_than_there_are_is_refused_at_once(server: RunningServer) -> None:
    response = post(server, zipped(SOME), crops=10)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "empty_body"),
        (zipped([]), 400, "empty_body"),
        (red_image(1), 400, "invalid_request"),
        (zipped(SOME)[:-30], 400, "invalid_request"),
        (tarred(SOME), 400, "invalid_request"),
        (gzip.compress(tarred(SOME)), 400, "invalid_request"),
        (zipped([(str(n), b"") for n in range(MAX_IMAGES + 1)]), 413, "body_too_large"),
        (zipped([("bomb", bytes(50_000_000))]), 413, "body_too_large"),
        (zipped([(str(n), bytes(MAX_BODY_BYTES // 2)) for n in range(3)]), 413, "body_too_large"),
    ],
)
def test_what_cannot_be_read_within_bounds_is_a_problem_as_a_whole(
    server: RunningServer, body: bytes, status: int, code: str
) -> None:
    before = server.metric("serving_requests_total", code=code)
    response = post(server, body)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert server.metric("serving_requests_total", code=code) == before + 1


@pytest.mark.parametrize(
    ("parameters", "status", "code"),
    [({"model": "none"}, 404, "unknown_model"), ({"top_k": 0}, 400, "invalid_parameter")],
)
def test_parameters_are_of_the_whole_request(
    server: RunningServer, parameters: dict[str, Any], status: int, code: str
) -> None:
    before = server.metric("serving_requests_total", code=code)
    response = post(server, zipped(SOME), **parameters)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert server.metric("serving_requests_total", code=code) == before + 1


def test_a_form_with_too_many_files_is_too_large(server: RunningServer) -> None:
    files = [("file", (str(n), b"x")) for n in range(MAX_IMAGES + 1)]
    response = server.client.post("/classify/batch", files=files)
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_images_are_counted_one_by_one(server: RunningServer) -> None:
    def counts() -> list[float]:
        return [server.metric("serving_requests_total", code=code) for code in ("ok", "not_an_image")]

    before = counts()
    classes(post(server, zipped([*SOME, ("text", b"not an image")])))
    assert [now - then for now, then in zip(counts(), before, strict=True)] == [3, 1]


def batch(reds: Sequence[int]) -> bytes:
    return zipped([(str(red), red_image(red)) for red in reds])


def test_batches_keep_no_single_request_out(eight: GatedServer) -> None:
    reds, over = list(range(30)), threading.Event()

    def post_until_over() -> list[list[tuple[str, int | str]]]:
        found = []
        while not over.is_set():
            found.append(classes(post(eight, batch(reds))))
        return found

    with ThreadPoolExecutor(3) as aside:
        batches = [aside.submit(post_until_over) for _ in range(3)]
        try:
            until(lambda: eight.pending() == 4)
            for _ in range(20):
                response = eight.classify(red_image(200))
                assert response.status_code == 200, response.text
        finally:
            over.set()
        for answers in batches:
            assert all(answer == [(str(red), red) for red in reds] for answer in answers.result())


def test_single_requests_keep_no_batch_out(eight: GatedServer) -> None:
    def refused() -> float:
        return eight.metric("serving_requests_total", code="queue_full")

    before = refused()
    with ThreadPoolExecutor(2) as aside, eight.hold(9) as let_go:
        singles = aside.submit(eight.classify_all, [red_image(9)] * 150, 16)
        until(lambda: refused() > before)
        answer = aside.submit(post, eight, batch(range(20, 40)))
        let_go()
        assert classes(answer.result()) == [(str(red), red) for red in range(20, 40)]
        assert {answer.status_code for answer in singles.result()} == {200, 429}


def test_what_comes_too_late_is_that_images_problem(eight: GatedServer) -> None:
    until(lambda: eight.pending() == 0)  # else the whole request might be refused
    with eight.hold(30):
        response = eight.client.post("/classify/batch", content=batch(range(60)), headers={"X-Request-Timeout": "0.5"})
    outcomes = [outcome for _, outcome in classes(response)]
    assert len(outcomes) == 60
    assert set(outcomes) & {"deadline_exceeded", "overloaded"}
    assert {code for code in outcomes if isinstance(code, str)} <= {"deadline_exceeded", "overloaded"}
    until(lambda: eight.pending() == 0)


def test_a_client_that_leaves_gives_every_image_up(eight: GatedServer) -> None:
    def count(code: str) -> float:
        return eight.metric("serving_requests_total", code=code)

    answered, left, body = count("ok"), count("client_closed"), batch(range(60))
    address = urlsplit(eight.url)
    with eight.hold(20):
        with socket.create_connection((address.hostname, address.port or 80)) as connection:
            head = f"POST /classify/batch HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            until(lambda: count("ok") > answered)
        until(lambda: count("client_closed") > left)
    until(lambda: eight.pending() == 0)
    assert (count("ok") - answered) + (count("client_closed") - left) == 60
    assert count("client_closed") - left > 30


def test_a_model_may_be_replaced_while_a_batch_runs(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    with (
        GatedServer(repository, reload_ms=100, queue_size=2, max_batch=1) as server,
        ThreadPoolExecutor(1) as aside,
        server.hold(30) as let_go,
    ):
        answer = aside.submit(post, server, batch(range(60)))
        until(lambda: server.metric("serving_requests_total", code="ok") > 0)
        tiny.publish(repository, 2)
        (repository / "tiny" / "1").rename(tmp_path / "1")
        until(lambda: [model["version"] for model in server.client.get("/models").json()["models"]] == [2])
        let_go()
        results = answer.result().json()["results"]
    assert [each["problem"] for each in results] == [None] * 60
    assert [each["classification"]["predictions"][0]["class_id"] for each in results] == list(range(60))
    assert {each["classification"]["version"] for each in results} == {1, 2}
