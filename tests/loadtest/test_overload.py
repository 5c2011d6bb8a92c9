import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.loadtest.serving import answer, fake_server

ROOT = Path(__file__).parents[2]
SHORT = ("--seconds", "1", "--warm-up", "0.3", "--connections", "2", "--pixels", "32")
PHOTOS = 3  # in export/photos


def overload(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "loadtest" / "overload.py", *SHORT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_this_server_is_measured_and_plotted(model_repository: Path, tmp_path: Path) -> None:
    done = overload("--repository", model_repository, "--factors", "0.5,2", "--write", tmp_path / "own")
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = json.loads((tmp_path / "own.json").read_text())
    assert (result["model"], result["capacity_per_s"] > 1) == ("efficientnet_lite0", True)
    assert [step["factor"] for step in result["steps"]] == [0.5, 2]
    for step in result["steps"]:
        assert step["lost"] == step["wrong"] == 0
        assert 0 < step["server_share"] <= 1.1
    assert (tmp_path / "own.svg").read_text().startswith("<?xml")
    assert "own.svg" in (tmp_path / "own.md").read_text()

    again = overload("--plot", tmp_path / "own.json", tmp_path / "own.json", "--write", tmp_path / "both")
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "both.md").read_text().count("## this server") == 2


@pytest.mark.slow
def test_a_rival_is_measured_on_the_same_network(model_repository: Path, environments: Path, tmp_path: Path) -> None:
    arguments = ("--rivals", "fastapi", "--environments", environments, "--factors", "0.5", "--write", tmp_path / "two")
    done = overload("--repository", model_repository, *arguments)
    if "cannot be installed" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "two.json").read_text())
    assert [result["name"].split()[0] for result in results] == ["this", "FastAPI"]
    for result in results:
        assert result["steps"][0]["good"]["per_s"] > 1
        assert result["steps"][0]["server_share"] > 0


def test_an_unknown_rival_is_one_line() -> None:
    done = overload("--rivals", "apache")
    assert done.returncode == 2
    assert "apache: choose from fastapi, litserve, mosec, bentoml, ray, triton" in done.stderr


@pytest.mark.parametrize(
    ("later", "line"),
    [(None, "connection lost"), ((200, answer(8)), "class 8 for a photo that was first found to be 7")],
)
def test_lost_and_wrong_fail(later: tuple[int, bytes] | None, line: str) -> None:
    numbers_of_the_open_loop = range(60, 2000, 10)
    with fake_server(lambda n: later if n in numbers_of_the_open_loop else (200, answer(7))) as url:
        done = overload("--server", f"rival={url}/classify", "--factors", "0.2")
    assert done.returncode == 1
    assert line in done.stderr


def test_what_is_no_result_cannot_be_plotted(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text("{}")
    done = overload("--plot", path)
    assert done.returncode == 1
    assert done.stderr == f"error: {path}: not written by overload.py --write\n"
