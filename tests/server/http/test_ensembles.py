"""Several models, served as one."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from tests import tiny
from tests.server.running import RunningServer


def image(red: int, green: int) -> bytes:
    stream = BytesIO()
    Image.new("RGB", (32, 32), (red, green, 0)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves one model that sees red, one that sees green (at another size), and `both`."""
    repository = tmp_path_factory.mktemp("repository")
    members = [tiny.write(repository, "red"), tiny.write(repository, "green", crop=16, channel=1)]
    tiny.write_ensemble(repository, "both", members)
    with RunningServer(repository, default_model="both") as running:
        yield running


def test_an_ensemble_answers_with_its_members_mean(server: RunningServer) -> None:
    answers = {
        name: {each["class_id"]: each["probability"] for each in response.json()["predictions"]}
        for name in ("red", "green", "both")
        for response in [server.classify(image(40, 200), model=name, top_k=10)]
    }
    assert set(list(answers["both"])[:2]) == {40, 200}
    for class_id in (40, 41, 200, 201):
        mean = (answers["red"].get(class_id, 0) + answers["green"].get(class_id, 0)) / 2
        assert answers["both"][class_id] == pytest.approx(mean, abs=1e-6)


def test_an_ensemble_is_listed_and_may_be_the_default(server: RunningServer) -> None:
    listed = {model["name"]: model for model in server.client.get("/models").json()["models"]}
    assert [member["name"] for member in listed["both"]["members"]] == ["red", "green"]
    assert listed["both"]["default"]
    assert server.classify(image(1, 1)).json()["model"] == "both"


def test_what_is_no_image_is_one_error_of_all_members(server: RunningServer) -> None:
    response = server.classify(b"not an image", model="both")
    assert (response.status_code, response.json()["code"]) == (415, "not_an_image")
    assert server.classify(image(7, 7)).json()["predictions"][0]["class_id"] == 7


def test_an_ensemble_without_one_of_its_members_is_refused_and_the_others_are_served(tmp_path: Path) -> None:
    members = [tiny.write(tmp_path, "red"), tiny.write(tmp_path, "green", channel=1)]
    tiny.write_ensemble(tmp_path, "both", members)
    tiny.write_ensemble(tmp_path, "changed", [members[0].model_copy(update={"file": members[1].file}), members[0]])
    (tmp_path / "green/1/model.onnx").write_bytes(b"")
    with RunningServer(tmp_path, default_model="red") as server:
        refused = server.client.get("/models").json()["refused"]
        assert "green version 1 is not served" in refused["both version 1"]
        assert "another file" in refused["changed version 1"]
        assert server.classify(image(3, 0)).json()["predictions"][0]["class_id"] == 3


def test_serving_an_ensemble_alone_loads_its_members(tmp_path: Path) -> None:
    members = [tiny.write(tmp_path, "red"), tiny.write(tmp_path, "green", channel=1)]
    tiny.write_ensemble(tmp_path, "both", members)
    tiny.write(tmp_path, "other")
    with RunningServer(tmp_path, models="both") as server:
        assert {model["name"] for model in server.client.get("/models").json()["models"]} == {"red", "green", "both"}
        assert server.classify(image(9, 9)).json()["model"] == "both"


def test_a_refused_ensemble_is_told_as_a_refused_model_is(tmp_path: Path) -> None:
    members = [tiny.write(tmp_path, "red"), tiny.write(tmp_path, "green", channel=1)]
    tiny.write_ensemble(tmp_path, "changed", [members[0].model_copy(update={"file": members[1].file}), members[0]])
    tiny.write_ensemble(tmp_path, "garbled", members)
    (tmp_path / "garbled/1/manifest.json").write_text("{")
    tiny.write_ensemble(tmp_path, "lacking", members)
    (tmp_path / "green/1/model.onnx").write_bytes(b"")
    with RunningServer(tmp_path, default_model="red") as server:
        listed = server.client.get("/models").json()["refused"]
        assert set(listed) == {f"{name} version 1" for name in ("green", "changed", "garbled", "lacking")}
        for name in ("green", "changed", "garbled", "lacking"):  # the first is a single model
            load = server.client.post(f"/v2/repository/models/{name}/load")
            assert (load.status_code, load.json()["code"]) == (409, "model_refused"), name
            assert load.json()["error"] == listed[f"{name} version 1"]
            classify = server.classify(image(3, 0), model=name)
            assert (classify.status_code, classify.json()["code"]) == (404, "unknown_model"), name
        index = server.client.post("/v2/repository/index").json()
        reasons = {f"{one['name']} version {one['version']}": one["reason"] for one in index if "reason" in one}
        assert reasons == listed


def test_an_ensemble_is_loaded_together_with_its_members(tmp_path: Path) -> None:
    tiny.write(tmp_path, "other")
    with RunningServer(tmp_path, reload_ms=0) as server:
        members = [tiny.write(tmp_path, "red"), tiny.write(tmp_path, "green", channel=1)]
        tiny.write_ensemble(tmp_path, "both", members)
        assert server.client.post("/v2/repository/models/both/load").status_code == 200
        assert server.classify(image(9, 9), model="both").json()["model"] == "both"
