from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from loadtest.compare import report
from loadtest.compare.rows import Around, Measured, Row


def row(
    server: str, variant: str, images_per_s: float, *, connections: int = 8, number: int = 0, errors: int = 0
) -> Row:
    return Row(
        work="tiny",
        server=server,
        variant=variant,
        connections=connections,
        round=number,
        run=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=1,
        baseline=Around(images_per_s=400, cpu_ms=5, lone_ms=6),
        measured=Measured(
            images=10,
            images_per_s=images_per_s,
            p50_ms=10,
            p95_ms=18,
            p99_ms=20,
            mean_batch=1,
            server_cpu_ms=8,
            client_cpu_ms=0.1,
            client_share=0.05,
            server_share=0.7,
            others_share=0.25,
            errors=errors,
            faults={"status 503": errors} if errors else {},
            memory_mb=200,
            processes=3,
            start_s=1.5,
            same_class=1,
        ),
    )


ROWS = [
    row("ours", "onnx", 200),
    row("ours", "openvino", 100),
    row("mosec", "plain", 110),
    row("mosec", "tuned", 120),
    row("mosec", "tuned", 150, number=1),
    row("mosec", "tuned", 140, number=2),
    row("litserve", "plain", 90, errors=2),
    row("litserve", "plain", 80, number=1, errors=1),
]
FAILED = ROWS[-1].model_copy(update={"measured": None, "failure": "it does not start", "variant": "tuned"})


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
