"""The metrics of all processes for `GET /metrics`, in Prometheus' text format or as OpenMetrics."""

import platform
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from server import VERSION
from server.metrics import PROCESS_ID, Exemplars

if TYPE_CHECKING:
    from prometheus_client import Metric

OPENMETRICS = "application/openmetrics-text"
BUILD = ("serving_build", "Always 1; the labels are versions: of the server, Python, each runtime that is installed")
"""Name and help text of the metric with the versions."""
_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13-libs")


def exposition(exemplars: Exemplars | None = None) -> tuple[bytes, str]:
    """The metrics and their content type; OpenMetrics if `exemplars` are given, as only that format has them."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, openmetrics

    registry = CollectorRegistry()
    registry.register(_All(exemplars))
    if exemplars is None:
        return generate_latest(registry), CONTENT_TYPE_LATEST
    content: bytes = openmetrics.exposition.generate_latest(registry)  # type: ignore[no-untyped-call]
    return content, openmetrics.exposition.CONTENT_TYPE_LATEST


class _All:
    def __init__(self, exemplars: Exemplars | None) -> None:
        self._exemplars = exemplars

    def collect(self) -> "Iterator[Metric]":
        from prometheus_client import multiprocess
        from prometheus_client.core import InfoMetricFamily

        for metric in multiprocess.MultiProcessCollector(None).collect():  # type: ignore[no-untyped-call]
            if metric.name == PROCESS_ID:
                yield from _of_processes({each.labels["process"]: int(each.value) for each in metric.samples})
                continue
            if self._exemplars and metric.type == "histogram" and metric.name.endswith("_seconds"):
                self._exemplars.put_on(metric)
            yield metric
        yield InfoMetricFamily(*BUILD, value=_build())


def _of_processes(pids: Mapping[str, int]) -> "Iterator[Metric]":
    """The client's process metrics, such as `process_resident_memory_bytes`, of each process that has not ended."""
    from prometheus_client import ProcessCollector

    found: dict[str, Metric] = {}
    for process, pid in pids.items():
        for metric in ProcessCollector(pid=partial(int, pid), registry=None).collect():
            samples = [each._replace(labels={"process": process}) for each in metric.samples]
            metric.samples = [*(found[metric.name].samples if metric.name in found else ()), *samples]
            found[metric.name] = metric
    yield from found.values()


def _build() -> dict[str, str]:
    found = {"version": VERSION, "python": platform.python_version()}
    for package in _RUNTIMES:
        try:
            found[package.replace("-", "_")] = version(package)
        except PackageNotFoundError:
            continue
    return found
