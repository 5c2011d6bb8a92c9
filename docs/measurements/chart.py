"""Draws the README's chart from the rows of `make compare`.

    python docs/measurements/chart.py docs/measurements/cascade.jsonl docs/compare.svg

A bar is the median of the rounds under the largest load, for each rival in its better variant, as in cascade.md.
"""

import argparse
import json
from collections import defaultdict
from html import escape
from pathlib import Path
from statistics import median

from loadtest.compare.servers import OURS, SERVERS

TITLES = {"efficientnet_lite0": "EfficientNet-Lite0", "resnet50": "ResNet-50"}
VARIANTS = {"onnx": "this server, FP32", "cascade": "this server, exact"}
"""The variants of this server that are drawn: FP32 as the rivals have it, and the exact cascade."""

WIDTH, LEFT, BAR, STEP, HEAD = 420, 130, 15, 21, 44
STYLE = """
    text { font: 12px system-ui, sans-serif; fill: #24292f }
    .head { font-weight: 600 } .small { font-size: 11px; fill: #57606a }
    .bar { fill: #b6bec8 } .ours { fill: #1a7f64 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 } .small { fill: #9198a1 } .bar { fill: #59636e } .ours { fill: #3fb68b }
    }
"""

Bar = tuple[str, float, bool]
"""Title, images per second, and whether it is ours."""


def main() -> None:
    """Read the rows, draw a panel for each network."""
    parser = argparse.ArgumentParser(prog="chart.py", description=__doc__)
    parser.add_argument("rows", type=Path, metavar="ROWS", help="rows of comparisons, as cascade.jsonl")
    parser.add_argument("drawing", type=Path, metavar="SVG", help="the file to write")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    connections = max(row["connections"] for row in rows)
    options.drawing.write_text(draw({work: bars(rows, work, connections) for work in TITLES}, connections))


def bars(rows: list[dict[str, object]], work: str, connections: int) -> list[Bar]:
    """The servers under one load, the fastest first."""
    paces = defaultdict(list)
    for row in rows:
        if (row["work"], row["connections"]) == (work, connections) and isinstance(row["measured"], dict):
            paces[row["server"], row["variant"]].append(row["measured"]["images_per_s"])
    titles = {server.name: server.title.rstrip("0123456789. ") for server in SERVERS}
    found: dict[str, Bar] = {}
    for (server, variant), measured in paces.items():
        ours = server == OURS
        if ours and variant not in VARIANTS:
            continue
        title, pace = VARIANTS[str(variant)] if ours else titles[str(server)], median(measured)
        if title not in found or found[title][1] < pace:
            found[title] = title, pace, ours
    return sorted(found.values(), key=lambda bar: -bar[1])


def draw(panels: dict[str, list[Bar]], connections: int) -> str:
    """One drawing, the panels side by side."""
    height = HEAD + STEP * max(map(len, panels.values())) + 8
    parts = []
    for number, (work, found) in enumerate(panels.items()):
        x = number * WIDTH
        parts.append(f'<text class="head" x="{x + 8}" y="18">{escape(TITLES[work])}</text>')
        parts.append(f'<text class="small" x="{x + 8}" y="34">images/s, {connections} connections, 2 CPUs</text>')
        longest = max(pace for _, pace, _ in found)
        for row, (title, pace, ours) in enumerate(found):
            y, length = HEAD + row * STEP, (WIDTH - LEFT - 60) * pace / longest
            bold, kind = (' class="head"', "ours") if ours else ("", "bar")
            parts += [
                f'<text{bold} x="{x + LEFT - 6}" y="{y + 12}" text-anchor="end">{escape(title)}</text>',
                f'<rect class="{kind}" x="{x + LEFT}" y="{y}" width="{length:.1f}" height="{BAR}"/>',
                f'<text x="{x + LEFT + length + 5:.1f}" y="{y + 12}">{pace:.0f}</text>',
            ]
    body = "\n  ".join(parts)
    width = WIDTH * len(panels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        f' role="img" aria-label="Images per second of this server and others">\n'
        f"  <style>{STYLE}  </style>\n  {body}\n</svg>\n"
    )


if __name__ == "__main__":
    main()
