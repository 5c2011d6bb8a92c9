"""Load by locust, with or without a web page: `locust -f loadtest/locustfile.py --headless --scenario spike --host URL`

Choose a scenario (`steady`, `ramp`, `spike`, `soak`, `sizes` or `bad`) by `--scenario` or by the name of its class
(`locust -f loadtest/locustfile.py Spike`). Without one, each user posts a photo as soon as the last one is answered.

Every answer is checked. Each run writes a report, and exits with 1 if a threshold is exceeded or nothing answers.
"""

import math
import time
from argparse import ArgumentParser
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner

from loadtest import photos, plots, report
from loadtest.plots import Panel
from loadtest.report import Verdict
from loadtest.sampling import Sample, Sampler
from loadtest.scenarios import LOST, SCENARIOS, UNSENT, Bad, Phases, Ramp, Scenario, Sizes, Soak, Spike, Steady, Visitor

__all__ = ["Bad", "Ramp", "Sizes", "Soak", "Spike", "Steady", "Visitor"]  # the users that locust finds

SAMPLE_S = 1.0
STOP_S = 60.0
"""How long users wait for outstanding answers when a run ends."""
PERCENTILES = (0.5, 0.95, 0.99)

Moment = tuple[float, float, list[float], Counter[str], Sample]
"""Second of the run, requests a second, percentiles in ms, errors so far by text, and a sample of the server."""


@events.init_command_line_parser.add_listener
def _add_arguments(parser: ArgumentParser) -> None:
    def add(name: str, default: object, text: str, **more: object) -> None:
        variable = f"LOCUST_{name[2:].replace('-', '_').upper()}"
        parser.add_argument(name, env_var=variable, default=default, help=text, **more)  # type: ignore[arg-type]

    fixed = {"include_in_web_ui": False}  # read before there is a page
    add("--photos", str(photos.FOLDER), "folder of photos to post", **fixed)
    text = "what to send; without it, each user posts one photo after the other"
    add("--scenario", "", text, choices=["", *SCENARIOS], **fixed)
    add("--rate", 20.0, "highest requests a second of a scenario", type=float)
    add("--length", 1.0, "multiplies the length of a scenario", type=float)
    add("--max-p99-ms", 2000.0, "a slower 99th percentile fails the run", type=float)
    add("--max-error-share", None, "a larger share of refusals and wrong answers fails it", type=float)
    add("--max-lost", 0, "more requests without any answer fail it", type=int)
    add("--reports", "loadtest/reports", "folder for the report of each run", **fixed)


@events.init.add_listener
def _set_up(environment: Environment, **_: object) -> None:
    """Choose the scenario; workers follow their master."""
    gevent.get_hub().loop.update_now()  # importing took seconds, and locust's timers would fire that much early
    options: Any = environment.parsed_options
    if isinstance(environment.runner, WorkerRunner):
        environment.stop_timeout = environment.stop_timeout or STOP_S
        return
    chosen = SCENARIOS.get(options.scenario) or _only(options.user_classes)
    if chosen:
        environment.user_classes = [chosen]
        environment.shape_class = Phases(chosen, options)
        environment.stop_timeout = environment.stop_timeout or STOP_S
    elif not options.user_classes:
        environment.user_classes = [Visitor]
    _Run(environment, chosen)


def _only(names: list[str]) -> type[Scenario] | None:
    return SCENARIOS.get(names[0].lower()) if len(names) == 1 else None


class _Run:
    """Watches and judges each run of one locust process."""

    def __init__(self, environment: Environment, scenario: type[Scenario] | None) -> None:
        self._environment = environment
        self._options: Any = environment.parsed_options
        self._scenario = scenario
        self._moments: list[Moment] = []
        self._watching: gevent.Greenlet | None = None
        environment.events.test_start.add_listener(self._start)
        environment.events.test_stop.add_listener(self._stop)
        environment.events.quitting.add_listener(self._quit)
        self._failed = True  # until a run has ended well

    def _start(self, **_: object) -> None:
        self._moments = []
        self._watching = gevent.spawn(self._watch, Sampler(self._environment.host or ""))

    def _watch(self, sampler: Sampler) -> None:
        started_s = time.monotonic()
        stats = self._environment.stats
        while True:
            at_s = time.monotonic() - started_s
            current = [stats.total.get_current_response_time_percentile(one) or math.nan for one in PERCENTILES]
            self._moments.append((at_s, stats.total.current_rps, current, self._errors(), sampler.look()))
            gevent.sleep(SAMPLE_S)

    def _errors(self) -> Counter[str]:
        counted: Counter[str] = Counter()
        for error in self._environment.stats.errors.values():
            counted[str(error.error).partition("(")[2].strip("'\")") or str(error.error)] += error.occurrences
        return counted

    def _stop(self, **_: object) -> None:
        if self._watching:
            self._watching.kill()
        verdicts = self._verdicts()
        self._failed = not all(verdict.kept for verdict in verdicts)
        name = self._scenario.__name__.lower() if self._scenario else "visitors"
        print(f"{name}: {'FAILED' if self._failed else 'passed'}", *verdicts, sep="\n  ")
        path = Path(self._options.reports) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.html"
        try:
            report.write(path, report.html(f"Load test: {name}", verdicts, self._figures(), self._panels()))
            print(f"  report: {path}")
        except OSError as error:
            print(f"  no report: {path}: {error.strerror}")

    def _quit(self, **_: object) -> None:
        self._environment.process_exit_code = 1 if self._failed or not self._environment.stats.num_requests else 0

    def _verdicts(self) -> list[Verdict]:
        options, total, errors = self._options, self._environment.stats.total, self._errors()
        share = options.max_error_share
        if share is None:
            share = self._scenario.max_error_share if self._scenario else 0.0
        p99_ms = float(total.get_response_time_percentile(0.99)) if total.num_requests else math.nan
        if not self._scenario:
            p99_ms = min(p99_ms, options.max_p99_ms)  # not judged: in a closed loop it depends on the number of users
        return [
            Verdict("99th percentile, ms", p99_ms, options.max_p99_ms),
            Verdict("share of errors", round(total.num_failures / max(total.num_requests, 1), 4), share),
            Verdict("lost", errors[LOST], options.max_lost),
            Verdict("unsent", errors[UNSENT], 0),
        ]

    def _figures(self) -> dict[str, str]:
        total = self._environment.stats.total
        percentiles = (f"{total.get_response_time_percentile(one):g}" for one in PERCENTILES)
        return {
            "host": self._environment.host or "",
            "requests": f"{total.num_requests}, {total.total_rps:.1f} a second",
            "p50, p95, p99": ", ".join(percentiles) + " ms",
            "errors": ", ".join(f"{count} {text}" for text, count in self._errors().items()) or "none",
        }

    def _panels(self) -> list[Panel]:
        moments = self._moments
        at = [moment[0] for moment in moments]
        pairs = list(pairwise(moments))
        texts = sorted({text for moment in moments for text in moment[3]})
        errors = {text: (at, [float(moment[3][text]) for moment in moments]) for text in texts}
        pss = [moment[4].pss_bytes for moment in moments]
        return [
            plots.over_time("requests a second", {"answered": (at, [moment[1] for moment in moments])}),
            plots.over_time(
                "latency of the last ten seconds, ms",
                {f"p{100 * one:g}": (at, [moment[2][i] for moment in moments]) for i, one in enumerate(PERCENTILES)},
            ),
            plots.over_time("errors so far, by code", errors or {"none": (at, [0.0] * len(at))}),
            plots.over_time(
                "images in a batch", {"mean": (at[1:], [now[4].mean_batch_since(was[4]) for was, now in pairs])}
            ),
            plots.over_time(
                "memory of the server, MiB", {"PSS": (at, [one / 2**20 if one else math.nan for one in pss])}
            ),
        ]
