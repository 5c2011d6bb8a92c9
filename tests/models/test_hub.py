"""Files of the hub, fetched from a server that speaks its protocol."""

import socket
from pathlib import Path

import huggingface_hub.constants
import pytest

from models import hub
from models.hub import Folder, Repository, SourceError, UnreachableHubError
from tests.hub import TOKEN, Hub, point_at

NAME = "somebody/network"
FILES = {"config.json": b"{}", "model.safetensors": b"of the first commit"}


def located(name: str) -> Repository:
    place = hub.locate(name)
    assert isinstance(place, Repository)
    return place


def test_files_are_of_the_commit_that_the_branch_leads_to(hub_server: Hub) -> None:
    commit = hub_server.push(NAME, FILES)
    place = located(f"hf:{NAME}")
    assert (place.origin, place.title) == (f"hf:{NAME}@{commit}", "network")
    assert [place.has(name) for name in ("config.json", "model.safetensors", "pytorch_model.bin")] == [1, 1, 0]
    hub_server.push(NAME, FILES | {"model.safetensors": b"of the second commit"})
    assert place.file("model.safetensors").read_bytes() == b"of the first commit"
    assert located(f"hf:{NAME}").file("model.safetensors").read_bytes() == b"of the second commit"


def test_revision_is_a_branch_a_tag_or_a_commit(hub_server: Hub) -> None:
    first = hub_server.push(NAME, FILES, "v1")
    hub_server.push(NAME, FILES | {"model.safetensors": b"of the second commit"})
    for revision in ("v1", first):
        assert located(f"hf:{NAME}@{revision}").file("model.safetensors").read_bytes() == b"of the first commit"


def test_what_was_fetched_is_not_fetched_again(hub_server: Hub) -> None:
    hub_server.push(NAME, FILES)
    for _ in range(2):
        located(f"hf:{NAME}").file("model.safetensors")
    assert [request for request in hub_server.requests if request.startswith("GET /cdn")].__len__() == 1


@pytest.mark.parametrize("how", ["offline", "unreachable", "down"])
def test_what_was_fetched_is_there_without_the_hub(hub_server: Hub, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub_server.push(NAME, FILES)
    place = located(f"hf:{NAME}")
    for name in FILES:
        place.file(name)
    asked = len(hub_server.requests)
    match how:
        case "offline":
            monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        case "unreachable":
            point_at(nowhere(), monkeypatch)
        case _:
            hub_server.down = True
    for revision in ("", f"@{commit}"):
        place = located(f"hf:{NAME}{revision}")
        assert place.commit == commit
        assert [place.has(name) for name in (*FILES, "pytorch_model.bin")] == [True, True, False]
        assert place.file("model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert len(hub_server.requests) == asked + (2 if how == "down" else 0)  # the branch and the commit were looked up


def nowhere() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return f"http://127.0.0.1:{one.getsockname()[1]}"


@pytest.mark.usefixtures("no_hub")
def test_hub_that_is_unreachable_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    point_at(nowhere(), monkeypatch)
    with pytest.raises(UnreachableHubError, match=r"does not answer .*HF_ENDPOINT"):
        hub.locate(f"hf:{NAME}")


def test_what_was_never_fetched_is_not_there_offline(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.push(NAME, FILES)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UnreachableHubError, match=f"hf:{NAME} is not in the hub's cache, and HF_HUB_OFFLINE is set"):
        hub.locate(f"hf:{NAME}")
    assert hub_server.requests == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf:somebody/nothing", r"no model somebody/nothing, or it is private.*HF_TOKEN"),
        ("hf:somebody/secret", r"no model somebody/secret, or it is private.*HF_TOKEN"),
        (f"hf:{NAME}@v9", f"hf:{NAME} has no revision v9"),
        ("hf:some body/network", "write hf:OWNER/NAME"),
        ("hf:", "write hf:OWNER/NAME"),
        ("hf:somebody/-network-", "write hf:OWNER/NAME"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub_server: Hub, name: str, message: str) -> None:
    hub_server.push(NAME, FILES)
    hub_server.push("somebody/secret", FILES)
    hub_server.private.add("somebody/secret")
    with pytest.raises(SourceError, match=message) as raised:
        hub.locate(name)
    assert "\n" not in str(raised.value)


def test_gated_model_asks_for_a_token(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.push(NAME, FILES)
    hub_server.gated.add(NAME)
    for token in ("", "hf_of_somebody_else"):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(SourceError, match=rf"hf:{NAME} is gated: .*{hub_server.url}/{NAME}.*HF_TOKEN"):
            located(f"hf:{NAME}").file("config.json")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert located(f"hf:{NAME}").file("config.json").read_bytes() == b"{}"


def test_hub_in_trouble_asks_to_come_again(hub_server: Hub) -> None:
    hub_server.push(NAME, FILES)
    hub_server.down = True
    with pytest.raises(UnreachableHubError, match="answers 503"):
        hub.locate(f"hf:{NAME}")


def test_folder_is_named_without_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "Mine"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.chdir(folder)
    for name in (str(folder), "../Mine", "."):
        place = hub.locate(name)
        assert isinstance(place, Folder)
        assert (place.origin, place.title) == ("Mine", "Mine")
        assert (place.has("config.json"), place.has("model.safetensors")) == (True, False)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", "there is no folder ./nothing"),
        ("timm/resnet50.a1_in1k", "a model of the hub is hf:timm/resnet50.a1_in1k"),
        ("hf-hub:timm/resnet50.a1_in1k", "a model of the hub is hf:timm/resnet50.a1_in1k"),
        ("./mine.safetensors", r"is a file: name its network, .*--weights ./mine.safetensors"),
        ("mine.onnx", "is an ONNX file: export/from_onnx.py takes it"),
    ],
)
def test_what_is_no_folder_is_said(name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for file in ("mine.safetensors", "mine.onnx"):
        Path(file).touch()
    with pytest.raises(SourceError, match=message):
        hub.locate(name)
