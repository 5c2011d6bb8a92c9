from pathlib import Path

from tests import tiny
from tests.loadtest import commands


def test_what_an_image_costs_the_engine_process_is_measured_with_full_batches(tmp_path: Path) -> None:
    tiny.write(tmp_path, crop=8)
    options = ("--batches", "2", "--images-per-s", "100", "--seconds", "0.3")
    done = commands.run("engine_loop.py", "--repository", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    max_batch, batch, per_s, cpu_ms = done.stdout.splitlines()[-1].split()
    assert max_batch == "2"
    assert 1 <= float(batch) <= 2
    assert 0 < float(per_s) <= 110
    assert float(cpu_ms) >= 0
