"""Prometheus metrics of all processes, in files that any HTTP worker can read.

Each process has a fixed identity ("http-0", "engine"), so a restarted process continues its predecessor's files:
counters never fall and files never pile up.
"""

import collections
import contextlib
import math
import os
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache, partial
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
"""A model's name and version; both are empty for a request that has none."""
NO_MODEL: Labels = ("", "")
PROCESS_ID = "serving_process_id"
"""Metric by which the process that is asked for metrics finds the others, to report their memory and CPU time."""

_ROOM_BYTES = {
    "counter": 2**18,
    "summary": 2**19,
    "histogram": 2**21,
    "gauge_livesum": 2**16,
    "gauge_livemax": 2**16,
}
"""Size of each process's files, by kind: enough for `_ROOM_FOR` versions of models, however long the server runs."""
_ROOM_FOR = 160


def room_bytes(versions: int) -> dict[str, int]:
    """Size of each process's files, by kind, for so many versions of models."""
    return {kind: size * max(1, math.ceil(versions / _ROOM_FOR)) for kind, size in _ROOM_BYTES.items()}


def use_directory(directory: Path, identities: Iterable[str], versions: int = 0) -> None:
    """Have this process and its children keep their metrics in `directory`; call it before anything imports the client.

    The space, for so many versions of models, is reserved now: the client maps files that are empty, and a write to
    a page for which there is no space kills the process.

    Raises:
        OSError: there is not enough space.
    """
    os.environ[DIRECTORY_VARIABLE] = str(directory)
    for identity, (kind, size) in product(identities, room_bytes(versions).items()):
        with (directory / f"{kind}_{identity}.db").open("wb") as file:
            portable.reserve(file, size)


class Metrics:
    """The metrics of one process; names and labels are the same in all processes, so the values add up."""

    def __init__(self, identity: str) -> None:
        """Open this process's files: one `Metrics` a process."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, values

        from server.prometheus_internals import Times, value_class

        values.ValueClass = value_class(identity)
        registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        times = partial(Times, buckets=SECONDS, registry=registry)
        total = partial(Gauge, multiprocess_mode="livesum", registry=registry)  # of the processes' values
        newest = partial(Gauge, multiprocess_mode="livemax", registry=registry)

        # Requests, in HTTP workers
        model = ["model", "version"]
        self.requests = counter("serving_requests", "Requests to classify, by ok or error code", [*model, "code"])
        self.images = counter("serving_images", "Images of answered requests, except remembered ones", model)
        self.stages = Summary(
            "serving_request_stage_seconds",
            "Seconds of a request's slowest image by stage: queue, decode, inference; or remembered, failed",
            [*model, "stage"],
            registry=registry,
        )
        self.refused = counter("serving_refused_requests", "Requests refused for their API key, by code", ["code"])
        self.pending = total("serving_pending_requests", "Requests between upload and answer")
        self.total = times("serving_request_seconds", "Seconds from upload to answer", model)
        self.decode_wait = times("serving_decode_wait_seconds", "Seconds of waiting to be decoded", model)
        self.decode = times("serving_decode_seconds", "Seconds to decode, resize, crop", model)
        self.gpu_decodes = counter(
            "serving_gpu_decodes", "Photos given to nvImageCodec: done, or refused and left to Pillow", ["outcome"]
        )
        self.cache_hits = counter("serving_cache_hits", "Images whose answer was remembered", model)
        self.cache_misses = counter(
            "serving_cache_misses", "Images whose answer might have been remembered, and was not", model
        )
        self.load_wait = times(
            "serving_model_wait_seconds",
            "Time that images waited for their model to be loaded; all others found it loaded",
        )
        self.cascades = counter(
            "serving_cascade_images",
            "Images of a cascade by member: answered, cut_short (answered, as time ran out), or passed_on to the next",
            [*model, "member", "outcome"],
        )
        candidate = [*model, "main", "main_version"]
        self.shadows = counter(
            "serving_shadow_images",
            "Images of the main model that a shadow got, too: their best classes agreed or disagreed, the shadow"
            " failed, or the image was dropped since the server had better things to do",
            [*candidate, "outcome"],
        )
        self.shadow_inference = times(
            "serving_shadow_inference_seconds",
            "Seconds of such images, by the shadow and by the main model, where both ran them in batches of one size",
            [*candidate, "by"],
        )
        self.canaries = counter(
            "serving_canary_requests",
            "Requests for another model that a canary got: asked, or passed back since the canary could not answer",
            [*model, "outcome"],
        )

        # Engines and their batches
        self.queue = times("serving_queue_seconds", "Seconds from decoded to inference", model)
        self.queue_length = total("serving_queue_length", "Images waiting for a batch", model)
        self.inference = times("serving_inference_seconds", "Seconds of an image's batch", model)
        self.batch_size = Times(
            "serving_batch_size", "Images in each batch", model, buckets=BATCH_SIZES, registry=registry
        )
        engine = ["engine", "device"]
        self.engine_ready = newest("serving_engine_ready", "1 if the engine answers, else 0", engine)
        self.engine_batches = counter("serving_engine_batches", "Batches that the engine has run", engine)
        self.engine_images = counter("serving_engine_images", "Images that the engine has run", engine)
        self.engine_busy = counter(
            "serving_engine_batch_seconds", "Seconds that the engine's batches took, added up", engine
        )

        # Models, processes and GPUs, in the supervisor
        self.refused_models = newest(
            "serving_refused_models",
            "Versions in the repository that cannot be served, by cause: never, or not_now (the server tries again)",
            ["cause"],
        )
        self.models = newest(
            "serving_models",
            "Versions that the server serves, by state: loaded, loading, or unloaded until a request names them",
            ["state"],
        )
        self.loads = counter(
            "serving_model_loads", "Loads of models by engines, by outcome: done or refused", ["outcome"]
        )
        self.load = times("serving_model_load_seconds", "Time to load a model and warm it up")
        self.evictions = counter("serving_model_evictions", "Models that engines unloaded to make room for others")
        self.model_memory = newest(
            "serving_model_memory_bytes",
            "Memory of all models of each engine, measured when it loaded the newest",
            ["engine"],
        )
        self.restarts = counter("serving_process_restarts", "Processes that ended without being told to", ["process"])
        gpu = ["gpu", "name"]
        self.gpu_utilisation = newest(
            "serving_gpu_utilization_ratio", "Share of the time in which the GPU did anything", gpu
        )
        self.gpu_used = newest("serving_gpu_memory_used_bytes", "Memory of the GPU that any process uses", gpu)
        self.gpu_total = newest("serving_gpu_memory_total_bytes", "Memory of the GPU", gpu)

        self.exemplars = Exemplars()
        newest(PROCESS_ID, "Process id", ["process"]).labels(identity).set(os.getpid())
        stages = self.decode_wait, self.decode, self.queue, self.inference
        for each in (self.requests, self.images, self.stages, self.total, *stages, self.batch_size, self.cascades):
            each.labels = cache(each.labels)  # type: ignore[assignment, method-assign]  # no locks, no checks

    def count_decoding(self, model: Labels, wait_s: float, decode_s: float) -> None:
        """Count a decoded image."""
        self.decode_wait.labels(*model).add(wait_s)
        self.decode.labels(*model).add(decode_s)

    def count_cascade(self, model: Labels, passed_on: Iterable[str], answered_by: str, *, cut: bool) -> None:
        """Count an image of a cascade; `cut`: its rule would have passed the image on once more."""
        for member in passed_on:
            self.cascades.labels(*model, member, "passed_on").inc()
        self.cascades.labels(*model, answered_by, "cut_short" if cut else "answered").inc()

    def count_refused(self, refused: Iterable[Refusal]) -> None:
        """Set the number of refused versions; these are all of them."""
        counts = collections.Counter(refusal.cause for refusal in refused)
        for cause in Cause:
            self.refused_models.labels(cause).set(counts[cause])

    def count_models(self, states: Mapping[str, int]) -> None:
        """Set the number of served versions by state."""
        for state in ("loaded", "loading", "unloaded"):
            self.models.labels(state).set(states.get(state, 0))

    def count_loads(self, engine: str, refused: int, loaded: "Collection[Measured]") -> None:
        """Count an engine's loads of models: the number refused, and what it measured of the others."""
        self.loads.labels("refused").inc(refused)
        self.loads.labels("done").inc(len(loaded))
        for each in loaded:
            self.load.add(each.seconds)
            self.model_memory.labels(engine).set(each.total_bytes)

    def ended(self, identity: str) -> None:
        """Note that a process has ended: nothing waits in it any more, of any model."""
        from server.prometheus_internals import forget_gauges

        with contextlib.suppress(OSError):
            forget_gauges(identity)

    def count_gpu_decode(self, outcome: str) -> None:
        """Count a photo that nvImageCodec has "done" or "refused"."""
        self.gpu_decodes.labels(outcome).inc()


class Exemplars:
    """The newest trace in each bucket of the histograms of time, of the requests that this process has answered.

    With several processes, the client library keeps none (`MmapedValue.set_exemplar` does nothing). Each process shows
    its own, since any process's trace is an example for the buckets of all.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str, str, float], Exemplar] = {}

    def note(self, trace_id: str, model: Labels, seconds: Mapping[str, float]) -> None:
        """Note a traced request, and the seconds that histograms counted of it ("queue": `serving_queue_seconds`)."""
        from prometheus_client.samples import Exemplar

        for name, value in seconds.items():
            bucket = bisect_left(SECONDS, value)
            bound = SECONDS[bucket] if bucket < len(SECONDS) else float("inf")
            exemplar = Exemplar({"trace_id": trace_id}, value)
            self._newest[f"serving_{name}_seconds", *model, bound] = exemplar

    def put_on(self, metric: "Metric") -> None:
        """Add the exemplars to the buckets of a histogram."""
        for index, sample in enumerate(metric.samples):
            if sample.name.endswith("_bucket"):
                labels = sample.labels
                bound = float(labels["le"])
                model = labels.get("model", ""), labels.get("version", "")
                found = self._newest.get((metric.name, *model, bound))
                metric.samples[index] = sample._replace(exemplar=found)


def samples() -> "Iterator[Sample]":
    """The samples of all metrics of all processes, as numbers."""
    from prometheus_client import multiprocess

    metrics = multiprocess.MultiProcessCollector(None).collect()  # type: ignore[no-untyped-call]
    return (sample for metric in metrics for sample in metric.samples)
