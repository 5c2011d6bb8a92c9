import json
import subprocess
from pathlib import Path

import pytest

from loadtest import overload
from tests import tiny
from tests.loadtest import commands
from tests.loadtest.serving import answer, fake_server

SHORT = ("--seconds", "0.4", "--warm-up", "0.1", "--deadline-ms", "500", "--connections", "2", "--pixels", "32")
PHOTOS = 3  # in export/photos


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return commands.call(overload.main, *SHORT, *arguments)


def test_this_server_is_measured_and_plotted(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    done = run("--repository", tmp_path, "--factors", "0.5,2", "--write", tmp_path / "own")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "own.json").read_text())
    assert (result["model"], result["capacity_per_s"] > 1) == ("tiny", True)
    assert [step["factor"] for step in result["steps"]] == [0.5, 2]
    for step in result["steps"]:
        assert step["lost"] == step["wrong"] == 0
        assert 0 < step["server_share"] <= 1.1
    assert (tmp_path / "own.svg").read_text().startswith("<?xml")
    assert "own.svg" in (tmp_path / "own.md").read_text()

    again = run("--plot", tmp_path / "own.json", tmp_path / "own.json", "--write", tmp_path / "both")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "both.md").read_text().count("## this server") == 2


@pytest.mark.usefixtures("installed")
def test_a_rival_is_measured_on_the_same_network(model_repository: Path, tmp_path: Path) -> None:
    arguments = ("--rivals", "fastapi", "--factors", "0.5", "--write", tmp_path / "two")
    done = run("--repository", model_repository, *arguments)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "two.json").read_text())
    assert [result["name"].split()[0] for result in results] == ["this", "FastAPI"]
    for result in results:
        assert result["steps"][0]["good"]["per_s"] > 1
        assert result["steps"][0]["server_share"] > 0


def test_an_unknown_rival_is_one_line() -> None:
    done = run("--rivals", "apache")
    assert done.returncode == 2
    assert "apache: choose from fastapi, litserve, mosec, bentoml, ray, triton" in done.stderr


@pytest.mark.parametrize(
    ("later", "line"),
    [(None, "connection lost"), ((200, answer(8)), "class 8 for a photo that was first found to be 7")],
)
def test_lost_and_wrong_fail(later: tuple[int, bytes] | None, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def capacity(*_: object) -> float:
        return 100.0

    monkeypatch.setattr(overload, "_capacity", capacity)  # a closed loop would lose its connections, too
    with fake_server(lambda n: (200, answer(7)) if n < PHOTOS or n % 5 else later) as url:
        done = run("--server", f"rival={url}/classify", "--factors", "1")
    assert done.returncode == 1
    assert line in done.stderr


def test_what_is_no_result_cannot_be_plotted(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    done = run("--plot", path)
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: not written by overload.py --write\n"
