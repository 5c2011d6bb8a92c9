import math
from collections import Counter
from pathlib import Path

import psutil
import pytest

from loadtest.command import LoadTestError
from loadtest.loops import Window
from loadtest.machine import Meters
from loadtest.results import Figures, Pace, percentiles_ms, read, read_lines

PACES = [Pace(images_per_s=1, cpu_ms=2), Pace(images_per_s=3, cpu_ms=4)]


def test_lines_come_back_and_one_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "paces.jsonl"
    assert read_lines(Pace, path) == []
    PACES[0].append(path)
    with path.open("a") as file:
        file.write('{"images_per_s": 3')
    assert read_lines(Pace, path) == PACES[:1]
    PACES[1].append(path)
    assert read_lines(Pace, path) == PACES


def test_a_file_of_something_else_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"images_per_s": "many"}\n')
    for reading in (lambda: read(Pace, path), lambda: read_lines(Pace, path)):
        with pytest.raises(LoadTestError) as raised:
            reading()
        assert str(raised.value).startswith(f"{path}: ")
        assert "\n" not in str(raised.value)


def test_figures_of_a_loop_are_for_one_image() -> None:
    meters = Meters(1.0, 2.0, 10.0), Meters(1.5, 2.1, 12.0)
    found = Figures.of(Window(*meters, 2.0, [0.1] * 9 + [0.2], [4] * 8 + [1] * 2, Counter(wrong=1)))
    assert (found.images, found.images_per_s, found.errors) == (10, 5, 1)
    assert (found.p50_ms, found.server_cpu_ms, found.client_cpu_ms) == pytest.approx((100, 50, 10))
    assert found.mean_batch == pytest.approx(2.5)  # two batches of four, and two of one
    cpus = psutil.cpu_count() or 1
    assert (found.server_share, found.others_share) == pytest.approx((0.25 / cpus, 0.7 / cpus))


def test_percentiles_are_milliseconds_and_of_nothing_no_number() -> None:
    assert percentiles_ms([0.001, 0.003], 50, 100) == pytest.approx([2, 3])
    assert all(math.isnan(value) for value in percentiles_ms([], 50, 99))
