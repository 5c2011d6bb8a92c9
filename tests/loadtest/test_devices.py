from pathlib import Path

from tests import tiny
from tests.loadtest import commands


def test_each_device_takes_its_time_and_all_of_them_answer(tmp_path: Path) -> None:
    tiny.write(tmp_path, crop=224)
    short = ("--devices", "1,2", "--max-batch", "4", "--per-s", "20", "--seconds", "1.5", "--warm-up", "0.5")
    done = commands.run("devices.py", "--repository", tmp_path, *short)
    assert done.returncode == 0, done.stderr
    _, one, two = (line.split() for line in done.stdout.splitlines())
    assert (one[0], two[0]) == ("1", "2")
    assert float(one[1]) <= 20 * 1.5  # whole batches fall into the time or do not
    assert float(one[3]) <= 4
    assert float(two[4]) > 0 < float(two[5])
