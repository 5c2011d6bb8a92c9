"""Limits on open files, really set, in separate processes."""

import subprocess
import sys

import pytest

from tests.server.running import PATIENCE_S, ROOT

PROGRAM = """
import logging, resource, sys
soft, hard, wanted = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
logging.basicConfig(format="%(message)s")
from server import descriptors
from server.settings import Settings
settings = descriptors.provide(Settings(max_connections=wanted))
print(settings.max_connections, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def provided(soft: int, hard: int, wanted: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(soft), str(hard), str(wanted)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S)


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "expected"),
    [
        (300, 4000, 1024, (1024, 2304, 4000)),  # raised only as far as needed
        (4000, 4000, 1024, (1024, 4000, 4000)),  # never lowered
        (300, 456, 1024, (100, 456, 456)),  # only as many connections as fit
    ],
)
def test_connections_have_their_open_files(soft: int, hard: int, wanted: int, expected: tuple[int, int, int]) -> None:
    done = provided(soft, hard, wanted)
    assert done.returncode == 0, done.stderr
    assert tuple(map(int, done.stdout.split())) == expected
    assert ("max_connections is 100, not 1024: 456 open files are allowed" in done.stderr) is (expected[0] < wanted)


def test_no_room_for_any_connection_is_said() -> None:
    done = provided(200, 257, 1)
    assert done.returncode != 0
    assert "only 257 open files are allowed" in done.stderr
