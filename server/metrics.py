"""Prometheus metrics of all processes, through files that any HTTP worker can read.

Each process has a fixed identity ("http-0", "engine"), so that a restarted process goes on with its files: counters
never fall and files never pile up.
"""

import collections
import math
import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from server import portable
from server.refusals import Cause, Refusal

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.samples import Exemplar, Sample

    from server.fitting import Measured

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Labels = tuple[str, str]
"""A model's name and version, both empty where a request means none."""
NO_MODEL: Labels = ("", "")
PROCESS_ID = "serving_process_id"
"""How the process that is asked for metrics finds the others, to tell of their memory and time."""

ROOM_BYTES = {
    "counter": 2**18,
    "summary": 2**19,
    "histogram": 2**21,
    "gauge_livesum": 2**16,
    "gauge_livemax": 2**16,
}
"""Of each process's files, by kind: enough for some versions of models, as long as it runs."""
ROOM_FOR = 160
"""So many versions."""


def use_directory(directory: Path, identities: Iterable[str], versions: int = ROOM_FOR) -> None:
    """Have this process and its children keep their metrics below `directory`; before anything imports the client.

    The room is taken now, for so many versions of models: the client maps files that are empty, and a page of such that
    cannot be had later kills the process that writes to it.

    Raises:
        OSError: there is not so much.
    """
    os.environ[DIRECTORY_VARIABLE] = str(directory)
    for identity, (kind, size) in product(identities, ROOM_BYTES.items()):
        with (directory / f"{kind}_{identity}.db").open("wb") as file:
            portable.reserve(file, size * max(1, math.ceil(versions / ROOM_FOR)))


class Metrics:
    """The metrics one process writes; names and labels are the same in all, so the values add up."""

    def __init__(self, identity: str) -> None:
        """Open this process's files: one `Metrics` a process."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, values

        from server.prometheus_internals import Times, value_class

        values.ValueClass = value_class(identity)
        registry = CollectorRegistry()
        model = ["model", "version"]
        self.requests = Counter(
            "serving_requests", "Requests to classify, by ok or error code", [*model, "code"], registry=registry
        )
        self.images = Counter(
            "serving_images",
            "Images of answered requests, except remembered ones",
            model,
            registry=registry,
        )
        self.stages = Summary(
            "serving_request_stage_seconds",
            "Seconds of a request's slowest image by stage: queue, decode, inference; or remembered, failed",
            [*model, "stage"],
            registry=registry,
        )
        self.refused = Counter(
            "serving_refused_requests", "Requests refused for their API key, by code", ["code"], registry=registry
        )
        self.total = Times(
            "serving_request_seconds", "Seconds from upload to answer", model, buckets=SECONDS, registry=registry
        )
        self.decode_wait = Times(
            "serving_decode_wait_seconds", "Seconds of waiting to be decoded", model, buckets=SECONDS, registry=registry
        )
        self.decode = Times(
            "serving_decode_seconds", "Seconds to decode, resize, crop", model, buckets=SECONDS, registry=registry
        )
        self.queue = Times(
            "serving_queue_seconds", "Seconds from decoded to inference", model, buckets=SECONDS, registry=registry
        )
        self.inference = Times(
            "serving_inference_seconds", "Seconds of an image's batch", model, buckets=SECONDS, registry=registry
        )
        self.batch_size = Times(
            "serving_batch_size", "Images in each batch", model, buckets=BATCH_SIZES, registry=registry
        )
        self.queue_length = Gauge(
            "serving_queue_length", "Images waiting for a batch", model, multiprocess_mode="livesum", registry=registry
        )
        self.pending = Gauge(
            "serving_pending_requests",
            "Requests between upload and answer",
            multiprocess_mode="livesum",
            registry=registry,
        )
        engine = ["engine", "device"]
        self.engine_ready = Gauge(
            "serving_engine_ready",
            "1 if the engine answers, else 0",
            engine,
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.engine_batches = Counter(
            "serving_engine_batches", "Batches that the engine has run", engine, registry=registry
        )
        self.engine_images = Counter(
            "serving_engine_images", "Images that the engine has run", engine, registry=registry
        )
        self.engine_busy = Counter(
            "serving_engine_batch_seconds",
            "Seconds that the engine's batches took, added up",
            engine,
            registry=registry,
        )
        self.refused_models = Gauge(
            "serving_refused_models",
            "Versions in the repository that cannot be served, by cause: never, or not_now (the server tries again)",
            ["cause"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.models = Gauge(
            "serving_models",
            "Versions that the server serves, by state: loaded, loading, or unloaded until a request names them",
            ["state"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.loads = Counter(
            "serving_model_loads",
            "Loads of models by engines, by outcome: done or refused",
            ["outcome"],
            registry=registry,
        )
        self.load = Times(
            "serving_model_load_seconds", "Time to load a model and warm it up", buckets=SECONDS, registry=registry
        )
        self.load_wait = Times(
            "serving_model_wait_seconds",
            "Time that images waited for their model to be loaded; all others found it loaded",
            buckets=SECONDS,
            registry=registry,
        )
        self.evictions = Counter(
            "serving_model_evictions", "Models that engines unloaded to make room for others", registry=registry
        )
        self.model_memory = Gauge(
            "serving_model_memory_bytes",
            "Memory of all models of each engine, measured when it loaded the newest",
            ["engine"],
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.restarts = Counter(
            "serving_process_restarts", "Processes that ended without being told to", ["process"], registry=registry
        )
        self.cache_hits = Counter("serving_cache_hits", "Images whose answer was remembered", model, registry=registry)
        self.cache_misses = Counter(
            "serving_cache_misses",
            "Images whose answer might have been remembered, and was not",
            model,
            registry=registry,
        )
        self.cascades = Counter(
            "serving_cascade_images",
            "Images of a cascade by member: answered, cut_short (answered, as time ran out), or passed_on to the next",
            [*model, "member", "outcome"],
            registry=registry,
        )
        candidate = [*model, "main", "main_version"]
        self.shadows = Counter(
            "serving_shadow_images",
            "Of another model, the main one, that a shadow got, too: their best classes agreed or disagreed, it failed,"
            " or the image was dropped since the server had better things to do",
            [*candidate, "outcome"],
            registry=registry,
        )
        self.shadow_inference = Times(
            "serving_shadow_inference_seconds",
            "Of the same images, by the shadow and by the main model, where both ran them in batches of one size",
            [*candidate, "by"],
            buckets=SECONDS,
            registry=registry,
        )
        self.canaries = Counter(
            "serving_canary_requests",
            "For another model, that a canary was asked, or that were passed back to the other, as it could not answer",
            [*model, "outcome"],
            registry=registry,
        )
        self.gpu_decodes = Counter(
            "serving_gpu_decodes",
            "Photos given to nvImageCodec: done, or refused and left to Pillow",
            ["outcome"],
            registry=registry,
        )
        gpu = ["gpu", "name"]
        self.gpu_utilisation = Gauge(
            "serving_gpu_utilization_ratio",
            "Share of the time in which the GPU did anything",
            gpu,
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.gpu_used = Gauge(
            "serving_gpu_memory_used_bytes",
            "Memory of the GPU that any process uses",
            gpu,
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.gpu_total = Gauge(
            "serving_gpu_memory_total_bytes",
            "Memory of the GPU",
            gpu,
            multiprocess_mode="livemax",
            registry=registry,
        )
        self.exemplars = Exemplars()
        pid = Gauge(PROCESS_ID, "Process id", ["process"], multiprocess_mode="livemax", registry=registry)
        pid.labels(identity).set(os.getpid())
        stages = self.decode_wait, self.decode, self.queue, self.inference
        for each in (self.requests, self.images, self.stages, self.total, *stages, self.batch_size, self.cascades):
            each.labels = cache(each.labels)  # type: ignore[assignment, method-assign]  # no locks, no checks

    def count_decoding(self, model: Labels, wait_s: float, decode_s: float) -> None:
        """One image more that was decoded."""
        self.decode_wait.labels(*model).add(wait_s)
        self.decode.labels(*model).add(decode_s)

    def count_cascade(self, model: Labels, passed_on: Iterable[str], answered_by: str, *, cut: bool) -> None:
        """One image more that went down a cascade, past some members; whether the rule would have sent it further."""
        for member in passed_on:
            self.cascades.labels(*model, member, "passed_on").inc()
        self.cascades.labels(*model, answered_by, "cut_short" if cut else "answered").inc()

    def count_refused(self, refused: Iterable[Refusal]) -> None:
        """These are all that are refused now."""
        counts = collections.Counter(refusal.cause for refusal in refused)
        for cause in Cause:
            self.refused_models.labels(cause).set(counts[cause])

    def count_models(self, states: Mapping[str, int]) -> None:
        """These are all that are to be served."""
        for state in ("loaded", "loading", "unloaded"):
            self.models.labels(state).set(states.get(state, 0))

    def count_loads(self, engine: str, refused: int, loaded: "Collection[Measured]") -> None:
        """An engine was to load so many models."""
        self.loads.labels("refused").inc(refused)
        self.loads.labels("done").inc(len(loaded))
        for each in loaded:
            self.load.add(each.seconds)
            self.model_memory.labels(engine).set(each.total_bytes)

    def count_gpu_decode(self, outcome: str) -> None:
        """One photo more that was "done", or "refused"."""
        self.gpu_decodes.labels(outcome).inc()


class Exemplars:
    """The newest trace in each bucket of the histograms of time, of the requests that this process has answered.

    The client library keeps none where several processes write (`MmapedValue.set_exemplar` does nothing). Each process
    shows its own, as any process's is an example for the buckets of all.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str, str, float], Exemplar] = {}

    def note(self, trace_id: str, model: Labels, seconds: Mapping[str, float]) -> None:
        """One traced request, and what each histogram, "queue" of `serving_queue_seconds`, has counted of it."""
        from prometheus_client.samples import Exemplar

        for name, value in seconds.items():
            bucket = bisect_left(SECONDS, value)
            bound = SECONDS[bucket] if bucket < len(SECONDS) else float("inf")
            exemplar = Exemplar({"trace_id": trace_id}, value)
            self._newest[f"serving_{name}_seconds", *model, bound] = exemplar

    def put_on(self, metric: "Metric") -> None:
        """Give the buckets of a histogram theirs."""
        for index, sample in enumerate(metric.samples):
            if sample.name.endswith("_bucket"):
                labels = sample.labels
                bound = float(labels["le"])
                model = labels.get("model", ""), labels.get("version", "")
                found = self._newest.get((metric.name, *model, bound))
                metric.samples[index] = sample._replace(exemplar=found)


def samples() -> "Iterator[Sample]":
    """The same as numbers: each sample of each metric, by name and labels."""
    from prometheus_client import CollectorRegistry, multiprocess

    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return (sample for metric in registry.collect() for sample in metric.samples)
