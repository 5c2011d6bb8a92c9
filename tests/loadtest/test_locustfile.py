import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def locust(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    locustfile = str(ROOT / "loadtest" / "locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", locustfile, "--headless", "-u", "4", "-r", "4", "--host", url]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture(autouse=True)
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that reports go to."""
    folder = tmp_path / "reports"
    monkeypatch.setitem(os.environ, "LOCUST_REPORTS", str(folder))
    return folder


def test_photos_are_answered_as_body_and_as_form(server_url: str) -> None:
    done = locust(server_url, "-t", "1s")
    assert done.returncode == 0, done.stderr
    assert "/classify (body)" in done.stderr
    assert "/classify (form)" in done.stderr


def test_errors_fail_the_run(server_url: str) -> None:
    assert locust(f"{server_url}/no-such-place", "-t", "1s").returncode == 1


def test_no_photos_fails_the_run(server_url: str, tmp_path: Path) -> None:
    assert locust(server_url, "-t", "1s", "--photos", str(tmp_path)).returncode == 1


@pytest.mark.parametrize("scenario", ["spike", "bad"])
def test_a_scenario_that_keeps_its_thresholds_passes_and_is_reported(
    server_url: str, scenario: str, reports: Path
) -> None:
    limits = ("--max-p99-ms", "60000", "--max-error-share", "0")
    done = locust(server_url, "--scenario", scenario, "--length", "0.03", "--rate", "20", *limits)
    assert done.returncode == 0, done.stdout + done.stderr
    (report,) = reports.glob(f"{scenario}-*.html")
    page = report.read_text()
    assert "kept: lost 0" in page
    assert "</svg>" in page
    assert not re.search("src=|<script|<link|@import", page), "it needs other files"


def test_a_scenario_that_passes_a_threshold_fails_and_is_reported(server_url: str, reports: Path) -> None:
    done = locust(server_url, "--length", "0.03", "--max-p99-ms", "0.001", "Steady")
    assert done.returncode == 1
    assert "FAILED: 99th percentile" in done.stdout
    assert len(list(reports.glob("steady-*.html"))) == 1


def test_requests_that_are_never_answered_are_lost(server_url: str) -> None:
    nobody = server_url.rpartition(":")[0] + ":9"
    done = locust(nobody, "--length", "0.03", "--max-error-share", "1", "Steady")
    assert done.returncode == 1
    assert "FAILED: lost" in done.stdout
