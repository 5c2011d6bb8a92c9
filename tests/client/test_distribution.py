"""The client without the rest of its repository; `tests/test_packages.py` builds its wheel."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from resnet_serving_client import AsyncClient, Classification, Client, MissingPackageError, Prediction, decoding
from resnet_serving_client.decoding import UnexpectedError, structured
from resnet_serving_client.responses import Models
from tests.server.running import PATIENCE_S, ROOT, RunningServer, red_image

CLIENT = ROOT / "client"
ANSWER = {
    "model": "tiny",
    "version": 1,
    "random_weights": False,
    "predictions": [{"class_id": 3, "label": "red 3", "probability": 1}],
    "timings_ms": {"decode": 1, "queue": 2.5, "inference": 3, "total": 6.5},
    "batch_size": 1,
    "request_id": "r",
}


def test_it_needs_httpx_and_tqdm_alone() -> None:
    project = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]
    assert [line.partition(">")[0] for line in project["dependencies"]] == ["httpx", "tqdm"]
    imported = set()
    for path in (CLIENT / "resnet_serving_client").glob("*.py"):
        for node in ast.parse(path.read_bytes()).body:  # not those inside functions, which need extras
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
    others = {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names)
    assert others == {"httpx", "tqdm", "resnet_serving_client"}


def test_it_has_the_licence_of_the_repository() -> None:
    assert (CLIENT / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_the_command_needs_no_more_either(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "7.png").write_bytes(red_image(7))
    program = (
        "import sys; sys.modules |= dict.fromkeys(['msgspec', 'numpy', 'pyarrow', 'pydantic', 'server', 'models'])"
    )
    program += "\nfrom resnet_serving_client.__main__ import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, "--url", server.url, "--format", "json", "7.png"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["predictions"][0]["class_id"] == 7
    done = subprocess.run(
        [*command, "--features", "f.npy"], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: --features cannot write .npy: msgspec and numpy cannot be imported: pip install msgspec numpy\n"
    )


def test_arrays_that_cannot_be_read_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "find_spec", lambda name: None if name == "msgspec" else name)
    with Client("http://127.0.0.1:9") as client:
        for ask in (lambda: client.embed(b""), lambda: client.classify(b"", include=["logits"])):
            with pytest.raises(MissingPackageError, match="msgspec cannot be imported: pip install msgspec"):
                ask()


def test_an_answer_becomes_its_dataclass_and_what_is_new_is_passed_over() -> None:
    answer = structured({**ANSWER, "new": {"field": 1}}, Classification)
    assert answer.predictions == [Prediction(3, "red 3", 1.0)]
    assert (answer.timings_ms.total, answer.timings_ms.decode_wait, answer.known) == (6.5, 0.0, None)
    assert isinstance(answer.predictions[0].probability, float)
    assert structured({"models": [], "refused": {"a": "b"}}, Models).refused == {"a": "b"}


@pytest.mark.parametrize(
    ("document", "where"),
    [
        ([], "$ is list"),
        ({}, "$ has no model"),
        ({**ANSWER, "version": True}, "$.version is bool"),
        ({**ANSWER, "version": "1"}, "$.version is str"),
        ({**ANSWER, "predictions": {}}, "$.predictions is dict"),
        ({**ANSWER, "predictions": [{"class_id": 1, "label": "x"}]}, "$.predictions[] has no probability"),
        ({**ANSWER, "heatmap": {"class_ids": [1], "maps": [], "box": [0, 1]}}, "$.heatmap.box has 2 items"),
    ],
)
def test_another_document_is_no_answer(document: object, where: str) -> None:
    with pytest.raises(UnexpectedError) as raised:
        structured(document, Classification)
    assert str(raised.value) == where


def test_both_clients_have_the_same_methods() -> None:
    plain, awaited = ({name for name in vars(kind) if not name.startswith("_")} for kind in (Client, AsyncClient))
    assert plain ^ awaited == {"close", "aclose"}
