"""What a calibrated model says about how sure it is, over each transport."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from resnet_serving_client.clients import Client
from tests import tiny
from tests.server.running import RunningServer, red_image


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `sure`, which is calibrated, `tiny`, which is not, and `both`."""
    repository = tmp_path_factory.mktemp("repository")
    members = [tiny.calibrate(repository, tiny.write(repository, "sure")), tiny.write(repository)]
    tiny.write_ensemble(repository, "both", members)
    with RunningServer(repository, default_model="sure", cache_entries=10, grpc_port=0) as running:
        yield running


def classes(answer: Any) -> list[int]:
    return [each["class_id"] for each in answer["predictions"]]


@pytest.mark.parametrize(("coverage", "beside"), [(0.5, 0), (0.8, 1), (0.81, 3), (0.99, 3)])
def test_coverage_decides_how_many_classes_there_are(server: RunningServer, coverage: float, beside: int) -> None:
    answer = server.classify(red_image(100), coverage=coverage).json()
    assert set(classes(answer)) == set(range(100 - beside, 101 + beside))
    assert answer["coverage"] == coverage
    assert "known" not in answer
    probabilities = [each["probability"] for each in answer["predictions"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert probabilities[0] == pytest.approx(0.1995, abs=1e-4)


@pytest.mark.parametrize(("red", "known"), [(51, True), (49, False)])
def test_an_image_of_none_of_the_classes_is_told(server: RunningServer, red: int, known: bool) -> None:
    answer = server.classify(red_image(red), reject=True).json()
    assert (answer["known"], len(answer["predictions"])) == (known, 5)
    assert "coverage" not in answer
    assert classes(answer)[0] == red
    assert server.classify(red_image(red), reject=True, coverage=0.5).json()["known"] is known


def test_nothing_of_it_is_there_where_it_is_not_asked_for(server: RunningServer) -> None:
    assert not {"known", "coverage"} & server.classify(red_image(9)).json().keys()


def test_each_of_what_is_asked_for_is_remembered_for_itself(server: RunningServer) -> None:
    asked: list[dict[str, Any]] = [{}, {"reject": True}, {"coverage": 0.5}, {"coverage": 0.9}, {"top_k": 3}]
    first = [server.classify(red_image(77), **each) for each in asked]
    again = [server.classify(red_image(77), **each) for each in asked]
    assert [each.headers["X-Cache"] for each in first + again] == ["miss"] * 5 + ["hit"] * 5
    assert [len(each.json()["predictions"]) for each in again] == [5, 5, 1, 7, 3]
    assert [each.json().get("known") for each in again] == [None, True, None, None, None]


def test_logits_come_with_it_where_they_are_wanted(server: RunningServer) -> None:
    answer = server.classify(red_image(100), coverage=0.8, reject=True, include="logits").json()
    assert (len(answer["predictions"]), len(answer["logits"]), answer["known"]) == (3, tiny.CLASSES, True)
    assert max(answer["logits"]) == pytest.approx(100**2 / 8)


def test_each_image_of_a_batch_has_its_own(server: RunningServer) -> None:
    files = [("file", (f"{red}.png", red_image(red))) for red in (0, 100)]
    found = server.client.post("/classify/batch", params={"coverage": 0.5, "reject": True}, files=files).json()
    answers = [each["classification"] for each in found["results"]]
    assert [(sorted(classes(each)), each["known"]) for each in answers] == [([0, 1, 2], False), ([100], True)]


@pytest.mark.parametrize(
    ("parameters", "status", "code", "detail"),
    [
        ({"model": "tiny", "coverage": 0.9}, 409, "not_calibrated", "calibrate.py tiny --images FOLDER publishes"),
        ({"model": "tiny", "reject": True}, 409, "not_calibrated", "tiny version 1 is not calibrated"),
        ({"model": "both", "coverage": 0.9}, 409, "not_calibrated", "both combines several networks"),
        ({"coverage": 0.9, "crops": 10}, 400, "invalid_parameter", "calibrated for one crop"),
        ({"coverage": 0.995}, 400, "invalid_parameter", "99 images that sure version 1 was calibrated on are enough"),
        ({"coverage": 1}, 400, "invalid_parameter", "coverage: Input should be less than 1"),
        ({"coverage": "nan"}, 400, "invalid_parameter", "coverage: Input should be"),
        ({"coverage": 0.9, "top_k": 5}, 400, "invalid_parameter", "leave out one of the two"),
        ({"reject": "perhaps"}, 400, "invalid_parameter", "reject: Input should be a valid boolean"),
    ],
)
def test_what_cannot_be_said_is_refused(
    server: RunningServer, parameters: dict[str, Any], status: int, code: str, detail: str
) -> None:
    response = server.classify(red_image(1), **parameters)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert detail in response.json()["detail"]
    if code == "not_calibrated":
        assert server.metric("serving_requests_total", model=parameters["model"], version="1", code=code) >= 1


@pytest.fixture(params=["http", "grpc"])
def triton(server: RunningServer, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A client from each of NVIDIA's modules."""
    module: Any = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    address = server.grpc_address if request.param == "grpc" else server.url.removeprefix("http://")
    with module.InferenceServerClient(address) as client:
        yield module, client


def ask(triton: Any, *reds: int, outputs: tuple[str, ...] = (), **parameters: Any) -> Any:
    module, client = triton
    tensor = module.InferInput("encoded", [len(reds), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[red_image(red)] for red in reds], object))
    wanted = [module.InferRequestedOutput(name) for name in outputs] or None
    return client.infer("sure", [tensor], outputs=wanted, parameters=parameters)


def test_tensors_have_rows_of_one_length_and_say_what_is_known(triton: Any) -> None:
    found = ask(triton, 0, 100, coverage=0.5, reject=True)  # nothing below 0: those above are more probable
    indices, probabilities, labels = (found.as_numpy(name) for name in ("indices", "probabilities", "labels"))
    assert indices.tolist() == [[0, 1, 2], [100, -1, -1]]
    assert labels[1].tolist() == [b"red 100", b"", b""]
    assert probabilities[1, 1:].tolist() == [0, 0]
    assert found.as_numpy("known").tolist() == [[False], [True]]
    assert ask(triton, 100, outputs=("known",)).as_numpy("known").tolist() == [[True]]
    assert ask(triton, 100).as_numpy("known") is None


def test_tensors_that_cannot_be_are_refused(triton: Any) -> None:
    wrong = ({"coverage": 0.8, "top_k": 3}, {"coverage": 2.0}, {"coverage": "much"}, {"reject": 1})
    for parameters in wrong:
        with pytest.raises(Exception, match=r"leave out top_k|between 0 and 1|true or false"):
            ask(triton, 1, **parameters)


def test_programs_have_it_from_the_client(server: RunningServer) -> None:
    with Client(server.url) as client:
        answer = client.classify(red_image(20), coverage=0.8, reject=True)
        assert [one.class_id for one in answer.predictions] == [20, 19, 21]
        assert (answer.coverage, answer.known) == (0.8, False)
        assert (client.classify(red_image(20)).coverage, client.classify(red_image(20)).known) == (None, None)
