"""Results as Markdown, for gpu.md: `python -m docs.measurements.gpu.report results.json`. Needs nothing but Python.

Several files are of machines that took turns: of a part that is in more than one, the last counts.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from docs.measurements.gpu.plan import PARTS

GOAL_PER_S = 10_000
Row = Mapping[str, Any]


def main() -> int:
    """Print the tables of all files."""
    results: dict[str, Row] = {}
    for path in sys.argv[1:]:
        results |= json.loads(Path(path).read_text())
    print(report(results))
    return 0


def report(results: Mapping[str, Row]) -> str:
    """Return the tables of all parts that have results."""
    machine = results.get("machine", {})
    lines = [
        f"{machine.get('gpu', 'no GPU')}, {machine.get('cpus')} CPUs, Python {str(machine.get('python')).split()[0]}"
    ]
    lines += [", ".join(f"{name} {version}" for name, version in machine.get("packages", {}).items() if version)]
    lines += ["", *_table(("part", "verdict", "s", "plan s", "what failed"), map(_verdict, _done(results)))]
    agreement = [row for _, result in _done(results) for row in result.get("agreement", ())]
    if agreement:
        columns = ("model", "images", "same_class", "right")
        lines += ["", *_table(columns, ([row[name] for name in columns] for row in agreement))]
    for name, result in _done(results):
        if "steps" in result:
            lines += [
                "",
                f"**{name}**",
                "",
                *_steps(result["steps"]),
                "",
                goal(result["steps"], machine.get("cpus", 0)),
            ]
        if "rows" in result:
            lines += ["", f"**{name}**, of {result['roofline']}", "", *_engines(result["rows"])]
    return "\n".join(lines)


def goal(steps: Iterable[Row], cpus: int) -> str:
    """Return what each stage costs in the fastest row, and may cost for the goal."""
    best = max(steps, key=lambda row: float(row["images_per_s"]))
    costs: Mapping[str, float] = best["cpu_ms"]
    total_ms, allowed_ms = sum(costs.values()), 1e3 * cpus / GOAL_PER_S
    parts = ", ".join(f"{role} {ms:.2f}" for role, ms in sorted(costs.items(), key=lambda cost: -cost[1]))
    said = f"Fastest: {best['images_per_s']:.0f} images/s, bound by {best['bound_by']}. CPU-ms an image: {parts}."
    said += f" {GOAL_PER_S:,}/s leave {allowed_ms:.2f} on {cpus} CPUs for all of {total_ms:.2f}"
    if total_ms <= allowed_ms:
        return f"{said}: the CPUs suffice."
    largest = max(costs, key=lambda role: costs[role])
    left_ms = costs[largest] - (total_ms - allowed_ms)
    if left_ms > 0:
        return f"{said}: with all else as it is, {largest} may cost {left_ms:.2f}."
    return f"{said}: more than {largest} has to be cheaper."


def _done(results: Mapping[str, Row]) -> list[tuple[str, Row]]:
    return [(part.name, results[part.name]) for part in PARTS if part.name in results]


def _verdict(done: tuple[str, Row]) -> list[object]:
    name, result = done
    (planned,) = (part.seconds for part in PARTS if part.name == name)
    failed = [check for check, text in result.get("checks", {}).items() if not text.startswith("ok")]
    return [name, result["verdict"], result["seconds"], planned, ", ".join(failed)]


def _steps(steps: Iterable[Row]) -> list[str]:
    known = ("model", "http_workers", "engines", "connections")
    rows = list(steps)
    first = [name for name in known if name in rows[0]]
    roles = sorted({role for row in rows for role in row["cpu_ms"]})
    head = [
        *first,
        "images/s",
        "p50 ms",
        "p99 ms",
        "batch",
        *(f"{role} CPU-ms" for role in roles),
        "GPU busy",
        "bound by",
    ]
    return _table(
        head,
        (
            [*(row[name] for name in first), row["images_per_s"], row["p50_ms"], row["p99_ms"], row["mean_batch"],
             *(row["cpu_ms"].get(role, "-") for role in roles), _share(row["gpu_busy"]), row["bound_by"]]
            for row in rows
        ),
    )  # fmt: skip


def _engines(rows: Iterable[Row]) -> list[str]:
    head = ("model", "settings", "batch", "images/s", "p50 ms", "p99 ms", "of bound")
    columns = ("model", "settings", "batch", "images_per_s", "p50_ms", "p99_ms", "of_bound")
    return _table(head, ([_share(row[one]) if one == "of_bound" else row[one] for one in columns] for row in rows))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> list[str]:
    names = list(head)
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    return [*lines, *(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)]


if __name__ == "__main__":
    sys.exit(main())
