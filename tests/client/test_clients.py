"""Both clients against real servers, including servers that are full, refuse, or die."""

import asyncio
import math
import socket
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from resnet_serving_client import (
    AsyncClient,
    BusyError,
    Client,
    ClientError,
    FailedError,
    Model,
    NoAnswerError,
    RejectedError,
)
from tests import tiny
from tests.server.running import GatedServer, RunningServer, red_image, until

Call = Callable[..., Any]


def call(url: str, method: str, *arguments: Any, deadline_s: float = 60, **keywords: Any) -> Any:
    """One call of a method of `Client`."""
    with Client(url, deadline_s=deadline_s) as client:
        return getattr(client, method)(*arguments, **keywords)


def call_async(url: str, method: str, *arguments: Any, deadline_s: float = 60, **keywords: Any) -> Any:
    """One call of a method of `AsyncClient`."""

    async def run() -> Any:
        async with AsyncClient(url, deadline_s=deadline_s) as client:
            return await getattr(client, method)(*arguments, **keywords)

    return asyncio.run(run())


both = pytest.mark.parametrize("call", [call, call_async])


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    return repository


@pytest.fixture(scope="module")
def one_place(repository: Path) -> Iterator[GatedServer]:
    """Takes one image at a time."""
    with GatedServer(repository, queue_size=1) as running:
        yield running


@pytest.fixture(scope="module")
def one_connection(repository: Path) -> Iterator[RunningServer]:
    """Takes one connection at a time."""
    with RunningServer(repository, max_connections=1) as running:
        running.client.close()
        yield running


@pytest.fixture(scope="module")
def hasty(repository: Path) -> Iterator[GatedServer]:
    """Gives up on requests after 50 ms."""
    with GatedServer(repository, timeout_ms=50) as running:
        yield running


@both
def test_an_answer_is_typed(call: Call, server: RunningServer) -> None:
    answer = call(server.url, "classify", red_image(123))
    raw = server.classify(red_image(123)).json()
    assert (answer.model, answer.version, answer.random_weights, answer.batch_size) == ("tiny", 2, False, 1)
    assert [one.class_id for one in answer.predictions] == [one["class_id"] for one in raw["predictions"]]
    assert (answer.predictions[0].label, answer.predictions[0].wordnet_id) == ("red 123", None)
    assert answer.timings_ms.total > 0
    assert len(answer.request_id) > 0


@both
def test_an_image_is_bytes_of_any_type(call: Call, server: RunningServer) -> None:
    for kind in (bytearray, memoryview):
        assert call(server.url, "classify", kind(red_image(7)), deadline_s=math.inf).predictions[0].class_id == 7
    for other in (Path("a.png"), "a.png", BytesIO(red_image(7)), None):
        with pytest.raises(TypeError, match="an image is the bytes of its file, not"):
            call(server.url, "classify", other)


@both
def test_every_choice_reaches_the_service(call: Call, server: RunningServer) -> None:
    answer = call(server.url, "classify", red_image(1), model="tiny", version=1, top_k=3, crops=10)
    assert (answer.model, answer.version, len(answer.predictions)) == ("tiny", 1, 3)
    assert server.metric("serving_inference_seconds_count", model="tiny") >= 10


@both
def test_the_models_are_listed(call: Call, server: RunningServer) -> None:
    assert call(server.url, "models") == [Model("other", 1, False), Model("tiny", 1, False), Model("tiny", 2, True)]


@both
@pytest.mark.parametrize(
    ("image", "choices", "status", "code"),
    [
        (b"", {}, 400, "empty_body"),
        (b"text", {}, 415, "not_an_image"),
        (red_image(1), {"model": "none"}, 404, "unknown_model"),
        (red_image(1), {"top_k": 0}, 400, "invalid_parameter"),
    ],
)
def test_a_rejection_has_its_code(
    call: Call, server: RunningServer, image: bytes, choices: dict[str, Any], status: int, code: str
) -> None:
    with pytest.raises(RejectedError) as raised:
        call(server.url, "classify", image, **choices)
    assert (raised.value.status, raised.value.code) == (status, code)
    assert raised.value.detail in str(raised.value)
    assert raised.value.request_id


@both
def test_a_failure_has_its_code(call: Call, hasty: GatedServer) -> None:
    with hasty.hold(1), pytest.raises(FailedError) as raised:
        call(hasty.url, "classify", red_image(1))
    assert (raised.value.status, raised.value.code) == (504, "deadline_exceeded")


@contextmanager
def occupied(server: GatedServer) -> Generator[Callable[[], None]]:
    """Another client holds the server's only place until the block ends or the yielded function is called."""
    with ThreadPoolExecutor(1) as aside, server.hold(1) as let_go:
        accepted = aside.submit(server.classify, red_image(1))
        until(lambda: server.pending() == 1)
        yield let_go
        let_go()
        accepted.result()


@both
def test_a_full_queue_is_tried_again_until_there_is_room(call: Call, one_place: GatedServer) -> None:
    def refused() -> float:
        return one_place.metric("serving_requests_total", code="queue_full")

    before = refused()
    with ThreadPoolExecutor(3) as pool, occupied(one_place) as let_go:
        answers = [pool.submit(call, one_place.url, "classify", red_image(red)) for red in (10, 20, 30)]
        until(lambda: refused() >= before + 3)
        let_go()
        assert [answer.result().predictions[0].class_id for answer in answers] == [10, 20, 30]


@both
def test_a_service_that_stays_busy_is_told_of_in_the_end(call: Call, one_place: GatedServer) -> None:
    with occupied(one_place), pytest.raises(BusyError) as raised:
        call(one_place.url, "classify", red_image(2), deadline_s=0.5)  # less than the server's Retry-After
    assert (raised.value.status, raised.value.code, raised.value.retry_after_s) == (429, "queue_full", 1)


@both
def test_no_connection_left_is_busy_too_and_passes(call: Call, one_connection: RunningServer) -> None:
    address = urlsplit(one_connection.url)
    with (
        ThreadPoolExecutor(1) as aside,
        socket.create_connection((address.hostname, address.port)) as occupier,
    ):
        with pytest.raises(BusyError) as raised:
            call(one_connection.url, "classify", red_image(2), deadline_s=0.5)
        assert (raised.value.status, raised.value.code) == (503, "too_many_connections")
        answer = aside.submit(call, one_connection.url, "classify", red_image(2))
        occupier.close()
        assert answer.result().predictions[0].class_id == 2


@both
@pytest.mark.parametrize("child", ["engine", "http-0"])
def test_a_killed_process_of_the_server_costs_no_answer(call: Call, one_place: GatedServer, child: str) -> None:
    with ThreadPoolExecutor(1) as aside, one_place.hold(7) as let_go:
        answer = aside.submit(call, one_place.url, "classify", red_image(7))
        until(lambda: one_place.pending() == 1)
        one_place.kill_child(child)
        let_go()
        assert answer.result().predictions[0].class_id == 7


@both
def test_the_deadline_ends_an_attempt(call: Call, one_place: GatedServer) -> None:
    with one_place.hold(1), pytest.raises(NoAnswerError, match="before the deadline"):
        call(one_place.url, "classify", red_image(1), deadline_s=0.1)
    until(lambda: one_place.pending() == 0)


@both
def test_a_killed_server_is_told_of(call: Call, repository: Path) -> None:
    with GatedServer(repository) as server, ThreadPoolExecutor(1) as aside, server.hold(7):
        answer = aside.submit(call, server.url, "classify", red_image(7))
        until(lambda: server.pending() == 1)
        server.process.kill()
        with pytest.raises(NoAnswerError, match="does not answer"):
            answer.result()


@both
def test_something_else_at_the_address_is_told_of(call: Call, server: RunningServer, web: str, tmp_path: Path) -> None:
    with pytest.raises(RejectedError) as raised:
        call(f"{server.url}/elsewhere", "models")
    assert raised.value.code == "not_found"
    with pytest.raises(RejectedError) as raised:
        call(web, "models")
    assert raised.value.code == "http_404"
    (tmp_path / "models").write_text('{"models": "of cars"}')
    with pytest.raises(NoAnswerError, match="does not answer as this service does"):
        call(web, "models")


@both
@pytest.mark.parametrize(
    "url", ["localhost:8000", "ftp://127.0.0.1", "http://", "http://[", "/tmp/socket", "http://127.0.0.1:65536"]
)
def test_a_wrong_address_is_told_of_at_once(call: Call, url: str) -> None:
    with pytest.raises(ClientError):
        call(url, "models")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize("key", ["schlüssel", "rsk_1\nrsk_2"])
def test_what_can_be_no_key_is_told_of_at_once(kind: type[Client] | type[AsyncClient], key: str) -> None:
    with pytest.raises(ClientError, match="API key"):
        kind(api_key=key)


@both
def test_readiness_is_waited_for_from_before_the_start(call: Call, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with ThreadPoolExecutor(1) as aside:
        ready = aside.submit(call, f"http://127.0.0.1:{port}", "wait_until_ready", 60)
        with RunningServer(tmp_path, port=port):
            ready.result()


@both
def test_waiting_for_readiness_ends(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(NoAnswerError):
        call(f"http://127.0.0.1:{port}", "wait_until_ready", 0.3)
