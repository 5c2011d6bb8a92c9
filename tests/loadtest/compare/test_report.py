from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest.compare import report
from tests.loadtest.compare.measured import FAILED, ROWS, row


def cells(text: str, title: str) -> list[str]:
    line = next(line for line in text.splitlines() if title in line)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_rival_counts_by_its_best_variant_and_ours_by_all() -> None:
    (part,) = report.summarise(ROWS)
    best = [(one.server, one.variant) for one in part.best(8)]
    assert best == [("ours", "onnx"), ("mosec", "tuned"), ("ours", "openvino"), ("litserve", "plain")]


def test_table_has_medians_ratios_and_all_errors() -> None:
    parts = report.summarise(ROWS)
    text = report.markdown(parts, "made by hand", ["compare-tiny.svg"])
    assert cells(text, ", no spinning")[1:5] == ["140.0", "0.70", "35%", "10.0"]
    assert cells(text, "**this server**")[1:4] == ["200.0", "1.00", "50%"]
    assert cells(text, "LitServe")[-1] == "3"
    assert cells(text, "| baseline |")[1] == "400.0"
    assert "140.0 (120.0 to 150.0)" in text
    assert "Other programs took 25%" in text


def test_what_failed_is_told() -> None:
    (part,) = report.summarise([*ROWS, FAILED])
    assert len(part.summaries) == len(report.summarise(ROWS)[0].summaries)
    text = report.markdown([part], "made by hand", ["compare-tiny.svg"])
    assert "tuned: it does not start" in text


def test_plot_is_an_image_that_names_the_servers(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (part,) = report.summarise([*ROWS, row("ours", "onnx", 50, connections=1)])
    report.plot(part, tmp_path / "plot.svg")
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")
    assert "this server, OpenVINO" in (tmp_path / "plot.svg").read_text()
