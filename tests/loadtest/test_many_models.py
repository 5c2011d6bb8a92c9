"""Measuring many models, of which only a few fit into memory."""

from pathlib import Path

from loadtest import many_models
from tests import tiny
from tests.loadtest import commands


def test_each_budget_is_a_line_with_its_hits_and_its_loads(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    arguments: list[str | Path] = [
        "--repository",
        tmp_path,
        "--copies",
        "5",
        "--budgets",
        "2,all",
        "--connections",
        "2",
    ]
    done = commands.call(many_models.main, *arguments, "--seconds", "0.5", "--warm-up", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    head, *lines = (line.split("  ") for line in done.stdout.splitlines())
    titles = [cell.strip() for cell in head if cell.strip()]
    few, everything = (dict(zip(titles, [cell for cell in line if cell.strip()], strict=True)) for line in lines)
    assert int(few["loads"]) > 0
    assert few["hits"].strip() != "100%"
    assert (int(everything["loads"]), everything["hits"].strip()) == (0, "100%")
    assert 0 < float(few["models MB"]) < float(everything["models MB"])
