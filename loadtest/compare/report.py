"""Turns rows into tables and plots."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from loadtest import tables
from loadtest.compare.rows import Around, Measured, Row
from loadtest.compare.servers import OURS, SERVERS

TITLES = {(server.name, server.variant): server.title for server in SERVERS}
_ORDER = list(TITLES)


@dataclass(frozen=True, slots=True)
class Summary:
    """All rounds of one variant of one server under one load."""

    server: str
    variant: str
    connections: int
    measured: Sequence[Measured]
    """by round"""
    of_baseline: float | None
    """median"""

    @property
    def title(self) -> str:
        """The title to show, which marks a rival's tuned variant."""
        return TITLES[self.server, self.variant] + (", no spinning" if self.variant == "tuned" else "")

    @property
    def pace(self) -> float:
        """Images per second, the median of the rounds."""
        return self.median("images_per_s")

    def median(self, name: str) -> float:
        """Median of a figure over the rounds."""
        return float(median(getattr(one, name) for one in self.measured))


@dataclass(frozen=True, slots=True)
class Part:
    """Everything about one network."""

    work: str
    summaries: Sequence[Summary]
    baseline: Around | None
    """medians"""
    others_share: float
    """of the machine's CPUs, used by neither server nor client; median"""
    failures: Sequence[str]

    @property
    def loads(self) -> list[int]:
        """All numbers of connections."""
        return sorted({summary.connections for summary in self.summaries})

    def best(self, load: int) -> list[Summary]:
        """The best variant of each rival and all variants of ours, the fastest first."""
        fastest_first = sorted(
            (summary for summary in self.summaries if summary.connections == load), key=lambda one: -one.pace
        )
        seen: set[str] = set()
        found = []
        for summary in fastest_first:
            if summary.server == OURS or summary.server not in seen:
                found.append(summary)
                seen.add(summary.server)
        return found


def summarise(rows: Iterable[Row]) -> list[Part]:
    """The parts, in the order in which their networks were measured."""
    by_work: dict[str, list[Row]] = {}
    for row in rows:
        by_work.setdefault(row.work, []).append(row)
    return [_part(work, members) for work, members in by_work.items()]


def markdown(parts: Sequence[Part], head: str, plots: Sequence[str]) -> str:
    """The document; `plots` are the names of files beside it, one for each part."""
    sections = [f"# This server and its rivals, side by side\n\n{head}"]
    for part, plot in zip(parts, plots, strict=True):
        others = f"Other programs took {part.others_share:.0%} of the CPUs (median of all rows)."
        sections.append(f"## {part.work}\n\n{others}\n\n![images per second and CPU time]({plot})")
        sections += [f"### {part.work}, {_connections(load)}\n\n{_table(part, load)}" for load in part.loads]
        sections.append(f"### {part.work}, every variant, images/s: median (least to most)\n\n{_variants(part)}")
        if part.failures:
            sections.append("### Not measured\n\n" + "\n".join(f"- {failure}" for failure in part.failures))
    return "\n\n".join(sections) + "\n"


def plot(part: Part, path: Path) -> None:
    """Draw images/s under each load, and CPU time under the largest, as SVG."""
    import matplotlib as mpl  # takes a second: not for --help
    from matplotlib.figure import Figure

    loads = part.loads
    names = [(one.server, one.variant) for one in reversed(part.best(loads[-1]))]
    found = {(one.server, one.variant, one.connections): one for one in part.summaries}
    titles = [found[*name, loads[-1]].title for name in names]
    with mpl.rc_context({"svg.hashsalt": part.work, "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(11, 1.5 + 0.5 * len(names)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        height = 0.8 / len(loads)
        for number, load in enumerate(loads):
            places = [place + 0.4 - height * (number + 0.5) for place in range(len(names))]
            paces = [one.pace if (one := found.get((*name, load))) else 0.0 for name in names]
            left.barh(places, paces, height, label=_connections(load))
        right.barh(titles, [found[*name, loads[-1]].median("server_cpu_ms") for name in names], 0.6, color="gray")
        left.set_yticks(range(len(names)), titles)
        left.set_xlabel("images/s")
        right.set_xlabel(f"CPU-ms an image, {_connections(loads[-1])}")
        if part.baseline:
            left.axvline(part.baseline.images_per_s, color="black", linestyle="--", label="baseline")
            right.axvline(part.baseline.cpu_ms, color="black", linestyle="--")
        left.legend()
        figure.suptitle(part.work)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _part(work: str, rows: Sequence[Row]) -> Part:
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        if row.measured:
            groups.setdefault((row.server, row.variant, row.connections), []).append(row)
    ordered = sorted(groups, key=lambda key: (_ORDER.index(key[:2]), key[2]))
    failures = {
        f"{TITLES[row.server, row.variant]}, {row.variant}: {_shortly(row.failure)}" for row in rows if row.failure
    }
    around = [row.baseline for row in rows if row.baseline]
    middle = {name: median(getattr(one, name) for one in around) for name in Around.model_fields} if around else None
    return Part(
        work,
        summaries=[_summary(*key, groups[key]) for key in ordered],
        baseline=Around(**middle) if middle else None,
        others_share=median([row.measured.others_share or 0.0 for row in rows if row.measured] or [0.0]),
        failures=sorted(failures),
    )


def _summary(server: str, variant: str, connections: int, rows: Sequence[Row]) -> Summary:
    shares = [row.measured.images_per_s / row.baseline.images_per_s for row in rows if row.measured and row.baseline]
    measured = [row.measured for row in rows if row.measured]
    return Summary(server, variant, connections, measured, median(shares) if shares else None)


def _table(part: Part, load: int) -> str:
    best = part.best(load)
    ours = next((one.pace for one in best if (one.server, one.variant) == (OURS, "onnx")), None)
    columns: tables.Columns[Summary] = {
        "server": lambda one: f"**{one.title}**" if one.server == OURS else one.title,
        "images/s": lambda one: f"{one.pace:.1f}",
        "of ours": lambda one: f"{one.pace / ours:.2f}" if ours else "",
        "of baseline": lambda one: tables.percent(one.of_baseline),
        "p50 ms": lambda one: f"{one.median('p50_ms'):.1f}",
        "p99 ms": lambda one: f"{one.median('p99_ms'):.1f}",
        "CPU-ms": lambda one: f"{one.median('server_cpu_ms'):.1f}",
        "memory MB": lambda one: f"{one.median('memory_mb'):.0f}",
        "start s": lambda one: f"{one.median('start_s'):.1f}",
        "same class": lambda one: f"{one.median('same_class'):.0%}",
        "errors": lambda one: str(sum(each.errors for each in one.measured)),
    }
    lines = [[text(one) for text in columns.values()] for one in best]
    if known := part.baseline:
        alone = f"{known.lone_ms:.1f}" if load == 1 else ""
        lines.append(["baseline", f"{known.images_per_s:.1f}", "", "", alone, "", f"{known.cpu_ms:.1f}"])
    return tables.lines(list(columns), [["---"] * len(columns), *lines])


def _variants(part: Part) -> str:
    titles = {(one.server, one.variant): one.title for one in part.summaries}
    found = {(one.server, one.variant, one.connections): one for one in part.summaries}

    def cell(one: Summary | None) -> str:
        paces = sorted(each.images_per_s for each in one.measured) if one else []
        return f"{median(paces):.1f} ({paces[0]:.1f} to {paces[-1]:.1f})" if paces else ""

    head = ["server", *map(_connections, part.loads)]
    rows = [[title, *(cell(found.get((*name, load))) for load in part.loads)] for name, title in titles.items()]
    return tables.lines(head, [["---"] * len(head), *rows])


def _shortly(failure: str) -> str:
    """What happened, and the last line of the log."""
    first, *_, last = [*failure.splitlines(), ""]
    return f"{first} … {last}".rstrip(" …")


def _connections(load: int) -> str:
    return f"{load} connection{'s' if load > 1 else ''}"
