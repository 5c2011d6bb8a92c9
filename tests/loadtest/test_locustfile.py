import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def locust(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    locustfile = str(ROOT / "loadtest" / "locustfile.py")
    command = [sys.executable, "-m", "locust", "-f", locustfile, "--headless", "-u", "4", "-r", "4", "--host", url]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)


def test_photos_are_answered_as_body_and_as_form(server_url: str) -> None:
    done = locust(server_url, "-t", "3s")
    assert done.returncode == 0, done.stderr
    assert "/classify (body)" in done.stderr
    assert "/classify (form)" in done.stderr


def test_errors_fail_the_run(server_url: str) -> None:
    assert locust(f"{server_url}/no-such-place", "-t", "1s").returncode == 1


def test_no_photos_fails_the_run(server_url: str, tmp_path: Path) -> None:
    assert locust(server_url, "-t", "1s", "--photos", str(tmp_path)).returncode == 1
