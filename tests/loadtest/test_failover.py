from pathlib import Path

from tests import tiny
from tests.loadtest import commands


def test_nothing_is_lost_while_engines_are_killed(tmp_path: Path) -> None:
    tiny.write(tmp_path, crop=224)
    short = ("--engines", "2", "--kills", "2", "--every", "0.3", "--rate", "20", "--connections", "8")
    done = commands.run("failover.py", "--repository", tmp_path, *short)
    assert (done.returncode, done.stderr) == (0, "")
    columns, row = (line.split() for line in done.stdout.splitlines())
    assert columns[:2] == ["engines", "kills"]
    assert row[:2] == ["2", "2"]
