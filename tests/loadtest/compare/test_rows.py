from pathlib import Path

from loadtest.compare import rows
from tests.loadtest.compare.measured import FAILED, ROWS


def test_rows_come_back_and_failures_are_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "compare.jsonl"
    rows.write(file, ROWS[:2])
    for row in (FAILED, *ROWS[2:]):
        row.append(file)
    assert len(file.read_text().splitlines()) == len(ROWS) + 1
    assert rows.read(file) == ROWS


def test_no_file_is_no_rows(tmp_path: Path) -> None:
    assert rows.read(tmp_path / "compare.jsonl") == []


def test_writing_anew_forgets_the_old(tmp_path: Path) -> None:
    file = tmp_path / "compare.jsonl"
    rows.write(file, ROWS)
    rows.write(file, ROWS[:1])
    assert rows.read(file) == ROWS[:1]
