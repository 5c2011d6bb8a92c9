import json
import re
import sys
from pathlib import Path
from subprocess import CompletedProcess
from unittest import mock

import pytest

from loadtest import mlperf, photos
from loadtest.photos import FOLDER
from tests.loadtest import commands
from tests.loadtest.commands import ROOT
from tests.loadtest.serving import answer, fake_server

SHORT = ("--min-duration-s", "0.3", "--min-queries", "5", "--connections", "4")
PHOTOS = len(photos.find(FOLDER))


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlperf_loadgen", reason="MLPerf's LoadGen has no wheel for this machine")
    monkeypatch.setattr(mlperf, "PROBE_S", 0.2)


def run(*arguments: str | Path) -> CompletedProcess[str]:
    return commands.call(mlperf.main, *SHORT, *arguments)


def test_loadgen_judges_every_scenario_and_counts_right_answers(server_url: str, tmp_path: Path) -> None:
    found = {path.name: red for path, red in zip(photos.find(FOLDER), (148, 153, 58), strict=True)}
    wrong = next(iter(found))
    val_map = tmp_path / "val_map.txt"
    val_map.write_text("".join(f"{name} {999 if name == wrong else red}\n" for name, red in found.items()))
    page = tmp_path / "mlperf.md"
    modes = ("--mode", "performance,accuracy", "--labels", val_map, "--logs", tmp_path / "logs", "--write", page)
    done = run("--url", server_url, "--target-latency-ms", "10000", *modes)
    lines = [line.split(" | ") for line in page.read_text().splitlines() if " | accuracy | " in line]
    assert [line[3] for line in lines] == ["top-1 66.67%"] * 3, done.stderr
    assert done.stdout.count("LoadGen's logs are in") == 1
    (link,) = re.findall(r"\]\((.+)#mlperf\)", page.read_text())
    assert (ROOT / "docs" / "measurements" / link).is_file()
    for scenario in mlperf.SCENARIOS:
        logs = tmp_path / "logs" / scenario
        assert f"Scenario : {scenario}" in (logs / "performance" / "mlperf_log_summary.txt").read_text()
        assert len(json.loads((logs / "accuracy" / "mlperf_log_accuracy.json").read_text())) == PHOTOS
        said = next(line for line in page.read_text().splitlines() if f"| {scenario} | performance |" in line)
        verdict = (
            "VALID"
            if "Result is : VALID" in (logs / "performance" / "mlperf_log_summary.txt").read_text()
            else "INVALID"
        )
        assert f"| {verdict} |" in said
    assert done.returncode == ("INVALID" in page.read_text().replace("INVALID is", ""))


def test_invalid_is_said_with_loadgens_reason(server_url: str, tmp_path: Path) -> None:
    done = run("--url", server_url, "--scenario", "Server", "--target-latency-ms", "0.01", "--logs", tmp_path)
    assert done.returncode == 1
    assert "INVALID" in done.stdout
    assert "Server is INVALID: Reduce target QPS to improve latency." in done.stderr


def test_a_request_without_a_right_answer_fails_the_run(tmp_path: Path) -> None:
    with (
        fake_server(lambda n: (429, b"full") if n % 5 == 4 else (200, answer(7))) as url,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(mlperf, "PROBE_S", 0.1)
        done = run("--url", url, "--scenario", "Offline", "--logs", tmp_path)
    assert done.returncode == 1
    assert "times: status 429: full" in done.stderr


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ("cat.jpg\n", "lines must be a photo's name and its class index, as in val_map.txt"),
        ("other.jpg 3\n", "has no class for"),
    ],
)
def test_labels_of_another_form_are_one_line(labels: str, line: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text(labels)
    with fake_server(lambda _: (200, answer(7))) as url:
        done = run("--url", url, "--mode", "accuracy", "--labels", tmp_path / "labels.txt", "--logs", tmp_path)
    assert (done.returncode, line in done.stderr) == (1, True)


def test_classes_that_no_answer_names_are_one_line(server_url: str, tmp_path: Path) -> None:
    done = run("--url", server_url, "--mode", "accuracy", "--scenario", "SingleStream", "--logs", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: no answer is one of the photos' classes (photos, ...): name them by --labels\n"


def test_without_loadgen_it_says_what_to_install() -> None:
    with mock.patch.dict(sys.modules, mlperf_loadgen=None):
        done = run("--url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.startswith("error: LoadGen is not installed: ")
    assert "'.[loadtest]'" in done.stderr
