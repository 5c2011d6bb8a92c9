"""Every way a request to classify can end, over real HTTP."""

import gzip
import http.client
import json
from collections.abc import Iterator
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests import tiny
from tests.server.running import PATIENCE_S, RunningServer, red_image

MAX_BODY_BYTES = 200_000
MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `tiny` in versions 1 and 2 (the default), and `other`."""
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    tiny.write(repository, version=2)
    tiny.write(repository, "other")
    with RunningServer(
        repository,
        default_model="tiny",
        max_body_bytes=MAX_BODY_BYTES,
        max_pixels=MAX_PIXELS,
        body_timeout_ms=1000,
    ) as running:
        yield running


def test_an_answer_has_all_that_was_promised(server: RunningServer) -> None:
    response = server.classify(red_image(123))
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert (answer["model"], answer["version"], answer["random_weights"]) == ("tiny", 2, False)
    assert answer["predictions"][0].items() >= {"class_id": 123, "label": "red 123", "wordnet_id": None}.items()
    probabilities = [prediction["probability"] for prediction in answer["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.99 < sum(probabilities) < 1.001
    timings = answer["timings_ms"]
    total_ms = timings.pop("total")
    assert timings.keys() == {"decode_wait", "decode", "queue", "inference"}
    assert 0 < sum(timings.values()) <= total_ms
    assert answer["batch_size"] == 1
    assert answer["request_id"] == response.headers["X-Request-ID"]


def test_a_form_is_answered_like_a_body(server: RunningServer) -> None:
    response = server.client.post("/classify", files={"file": ("photo.png", red_image(9))}, data={"comment": "hello"})
    assert response.json()["predictions"][0]["class_id"] == 9


@pytest.mark.parametrize("content_type", ["image/jpeg", "application/x-www-form-urlencoded", "text/plain", ""])
def test_the_bytes_decide_not_the_content_type(server: RunningServer, content_type: str) -> None:
    response = server.client.post("/classify", content=red_image(50), headers={"Content-Type": content_type})
    assert response.json()["predictions"][0]["class_id"] == 50


def test_a_chunked_body_is_read_to_its_end(server: RunningServer) -> None:
    image = red_image(51)
    response = server.client.post("/classify", content=(image[n : n + 10] for n in range(0, len(image), 10)))
    assert response.json()["predictions"][0]["class_id"] == 51


@pytest.mark.parametrize(("top_k", "count"), [(1, 1), (100, 100)])
def test_top_k_says_how_many(server: RunningServer, top_k: int, count: int) -> None:
    assert len(server.classify(red_image(1), top_k=top_k).json()["predictions"]) == count


def test_model_and_version_say_which(server: RunningServer) -> None:
    assert server.classify(red_image(1), version=1).json()["version"] == 1
    assert server.classify(red_image(1), model="other").json()["model"] == "other"


def test_the_clients_request_id_comes_back_where_it_is_usable(server: RunningServer) -> None:
    for sent, comes_back in [("abc-123", True), ("a b", False), ("x" * 129, False)]:
        response = server.client.post("/classify", content=red_image(1), headers={"X-Request-ID": sent})
        assert (response.json()["request_id"] == sent) is comes_back
        assert response.json()["request_id"] == response.headers["X-Request-ID"]


def _encoded(image_format: str, size: tuple[int, int]) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size).save(stream, image_format)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("body", "parameters", "status", "code"),
    [
        (b"", {}, 400, "empty_body"),
        (b"x" * (MAX_BODY_BYTES + 1), {}, 413, "body_too_large"),
        (_encoded("PNG", (1001, 1000)), {}, 413, "too_many_pixels"),
        (b"GIF? no, a text", {}, 415, "not_an_image"),
        (_encoded("ICO", (32, 32)), {}, 415, "not_an_image"),
        (red_image(1)[:-40], {}, 422, "broken_image"),
        (red_image(1), {"model": "none"}, 404, "unknown_model"),
        (red_image(1), {"version": 7}, 404, "unknown_model"),
        (red_image(1), {"top_k": 0}, 400, "invalid_parameter"),
        (red_image(1), {"top_k": 101}, 400, "invalid_parameter"),
        (red_image(1), {"top_k": "many"}, 400, "invalid_parameter"),
        (red_image(1), {"version": -1}, 400, "invalid_parameter"),
        (red_image(1), {"crops": 5}, 400, "invalid_parameter"),
        (red_image(1), {"topk": 1}, 400, "invalid_parameter"),
        (red_image(1), {"top_k": [1, 2]}, 400, "invalid_parameter"),
        (red_image(1), {"_": 1}, 400, "invalid_parameter"),
        (red_image(1), {"model": ""}, 404, "unknown_model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_mistake_has_its_problem_document(
    server: RunningServer, body: bytes, parameters: dict[str, str], status: int, code: str
) -> None:
    response = server.classify(body, **parameters)
    problem = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, problem["status"], problem["code"]) == (status, status, code)
    assert problem["type"].endswith(code)
    assert problem["detail"]
    assert problem["request_id"] == response.headers["X-Request-ID"]


@pytest.mark.parametrize(
    "form",
    [
        b"",
        b"--b\r\n",
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nno file name\r\n--b--\r\n',
        b"no boundary at all",
    ],
)
def test_a_form_without_one_file_is_malformed(server: RunningServer, form: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = server.client.post("/classify", content=form, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "malformed_multipart")


def test_an_unknown_parameter_is_told_which_was_meant(server: RunningServer) -> None:
    detail = server.classify(red_image(1), topk=1).json()["detail"]
    assert detail == "topk: there is no such parameter; there is top_k"
    batch = server.client.post("/classify/batch", files=[("file", ("a.png", red_image(1)))], params={"modle": "tiny"})
    assert (batch.status_code, batch.json()["detail"]) == (400, "modle: there is no such parameter; there is model")


def test_fields_of_a_form_are_parameters(server: RunningServer) -> None:
    files = {"file": ("a.png", red_image(7))}

    def sent(path: str = "/classify", *, params: dict[str, str] | None = None, **fields: str) -> httpx.Response:
        return server.client.post(path, files=files, data=fields, params=params)

    assert len(sent(top_k="3").json()["predictions"]) == 3
    assert len(sent(params={"top_k": "2"}, version="1").json()["predictions"]) == 2
    assert sent(model="none").json()["code"] == "unknown_model"
    assert sent(comment="of another program").status_code == 200
    assert sent(topk="1").json()["detail"] == "topk: there is no such parameter; there is top_k"
    assert sent(topK="1").json()["detail"] == "topK: there is no such parameter; there is top_k"
    assert sent(params={"top_k": "2"}, top_k="2").json()["detail"] == "top_k: it is given twice"
    for garbled in ("3".encode("utf-16"), b"\xff", b"\0"):
        parts: list[tuple[str, Any]] = [("file", ("a.png", red_image(7))), ("top_k", (None, garbled))]
        assert server.client.post("/classify", files=parts).json()["code"] == "invalid_parameter"
    (result,) = sent("/classify/batch", top_k="4").json()["results"]
    assert len(result["classification"]["predictions"]) == 4


def test_lines_of_one_header_field_are_a_list(server: RunningServer) -> None:
    def sent(*headers: tuple[str, str]) -> httpx.Response:
        return server.client.post("/classify", content=gzip.compress(red_image(7)), headers=headers)

    packed = ("Content-Encoding", "gzip")
    answer = sent(packed, ("Accept", "text/html"), ("Accept", "application/msgpack"))
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/msgpack")
    assert sent(packed, ("Content-Encoding", "br")).json()["code"] == "unsupported_encoding"


def test_a_form_that_says_two_things_is_refused(server: RunningServer) -> None:
    form = b"".join(b'--b\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n%d\r\n' % top_k for top_k in (1, 2))
    form += (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + red_image(1) + b"\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    response = server.client.post("/classify", content=form, headers=headers)
    assert (response.status_code, response.json()["code"]) == (400, "invalid_parameter")


def test_a_body_that_is_too_long_is_refused_though_it_never_said_so(server: RunningServer) -> None:
    response = server.client.post("/classify", content=(b"x" * 10_000 for _ in range(50)))
    assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_an_upload_that_stalls_is_cut_off(server: RunningServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc)
    connection.putrequest("POST", "/classify")
    connection.putheader("Content-Length", "1000")
    connection.endheaders(b"half")
    response = connection.getresponse()
    assert (response.status, json.load(response)["code"]) == (408, "body_timeout")
    connection.close()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/classify", 405), ("GET", "/nothing", 404)])
def test_the_frameworks_own_errors_are_problem_documents(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    response = server.client.request(method, path)
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, response.json()["status"]) == (status, status)


def test_requests_at_the_same_time_get_their_own_answers(server: RunningServer) -> None:
    reds = [n % 256 for n in range(512)]
    answers = [answer.json() for answer in server.classify_all([red_image(red) for red in reds], 32)]
    assert [answer["predictions"][0]["class_id"] for answer in answers] == reds
    assert max(answer["batch_size"] for answer in answers) > 1


def test_ten_crops_are_averaged(server: RunningServer) -> None:
    picture = Image.new("RGB", (64, 32), (0, 0, 0))
    picture.paste((200, 0, 0), (32, 0, 64, 32))  # left crops see black, right crops see red, the centre half of each
    stream = BytesIO()
    picture.save(stream, "PNG")
    one = server.classify(stream.getvalue()).json()["predictions"]
    ten = server.classify(stream.getvalue(), crops=10, top_k=100).json()["predictions"]
    assert one[0]["class_id"] == 100
    assert {each["class_id"] for each in ten[:2]} == {0, 200}
    assert ten[0]["probability"] == pytest.approx(0.4 * 0.72, abs=0.15)
    assert len(ten) == 100


@pytest.mark.parametrize(
    ("code", "parameters"),
    [("not_an_image", {}), ("invalid_parameter", {"top_k": 0}), ("unknown_model", {"model": "no"})],
)
def test_mistakes_are_counted_by_code(server: RunningServer, code: str, parameters: dict[str, str]) -> None:
    before = server.metric("serving_requests_total", code=code)
    assert server.classify(b"not an image", **parameters).json()["code"] == code
    assert server.metric("serving_requests_total", code=code) == before + 1


@pytest.mark.parametrize("header", ["0", "4000", "nan", "soon", ""])
def test_a_timeout_that_is_none_is_an_invalid_parameter_by_its_name(server: RunningServer, header: str) -> None:
    response = server.client.post("/classify", content=red_image(1), headers={"X-Request-Timeout": header})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_parameter")
    assert response.json()["detail"].startswith("X-Request-Timeout: ")


def test_several_workers_share_the_port(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, http_workers=3, queue_size=96) as server:
        reds = list(range(60))
        answers = []
        for red in reds:  # each on a new connection, which the kernel gives to one of the workers
            server.client.headers["Connection"] = "close"
            answers.append(server.classify(red_image(red)).json()["predictions"][0]["class_id"])
        assert answers == reds
        assert server.metric("serving_requests_total", code="ok") == len(reds)


def test_an_idle_connection_is_kept_for_as_long_as_the_setting_says(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, keep_alive_ms=1000) as server:
        address = urlsplit(server.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE_S)
        with closing(connection):
            for _ in range(2):
                connection.request("POST", "/classify", red_image(1))
                assert connection.getresponse().read()
            assert connection.sock.recv(1) == b""  # closed by the server; otherwise this would time out
