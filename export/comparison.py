"""Two or more ways to run one classifier, compared on the same images: answers, accuracy, and speed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from export import samples
from models.manifest import Accuracy, CropCount, Preprocessing
from server.engine.backends import Backend

ROUNDS = 5
"""In each of them everything has its turn, so that a machine that slows down slows all alike."""
_PHOTOS_AT_ONCE = 8
_progress = Console(stderr=True)


@dataclass(frozen=True)
class Answers:
    """What one way to run a classifier answered."""

    logits: NDArray[np.float32]
    """float32[M, crops, num_classes], the centre crop first."""

    def top1_agreement(self, reference: "Answers") -> float:
        """Share of the images whose centre crop has the same best class."""
        return float(np.mean(self.logits[:, 0].argmax(1) == reference.logits[:, 0].argmax(1)))

    def max_logit_error(self, reference: "Answers") -> float:
        """Largest difference of a logit, over all crops."""
        return float(np.abs(self.logits - reference.logits).max())

    def divergence(self, reference: "Answers") -> float:
        """Mean Kullback-Leibler divergence of the centre crop's probabilities from the reference's, in nats."""
        ours, theirs = _log_softmax(self.logits[:, 0]), _log_softmax(reference.logits[:, 0])
        return float(np.mean((np.exp(theirs) * (theirs - ours)).sum(1)))

    def probabilities(self) -> NDArray[np.float64]:
        """Return float64[M, crops, num_classes]."""
        return np.exp(_log_softmax(self.logits))

    def accuracy(self, classes: NDArray[np.int64], crops: int = 1) -> Accuracy:
        """Accuracy in percent, by the mean probability over the first so many crops."""
        return accuracy(self.probabilities()[:, :crops].mean(1), classes)


def accuracy(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> Accuracy:
    """Accuracy in percent of float64[M, num_classes], where the right classes are int64[M]."""
    right = np.argsort(-probabilities, axis=1, kind="stable")[:, :5] == classes[:, None]
    return Accuracy(top1=100 * float(right[:, 0].mean()), top5=100 * float(right.any(1).mean()))


def answers(
    backends: Sequence[Backend], paths: Sequence[Path], preprocessing: Preprocessing, crops: CropCount = 1
) -> list[Answers]:
    """Put the same images to each, a few at a time.

    Raises:
        ImagesError: one cannot be read.
    """
    collected: list[list[NDArray[np.float32]]] = [[] for _ in backends]
    starts = range(0, len(paths), _PHOTOS_AT_ONCE)
    for start in track(starts, "compare answers", console=_progress, transient=True, disable=not _progress.is_terminal):
        pixels = samples.pixels(paths[start : start + _PHOTOS_AT_ONCE], preprocessing, crops)
        images = list(pixels.reshape(-1, *pixels.shape[2:]))
        for parts, backend in zip(collected, backends, strict=True):
            parts.append(backend.run(images).logits.reshape(*pixels.shape[:2], -1))
    return [Answers(np.concatenate(parts)) for parts in collected]


def paces(
    backends: Sequence[Backend], images: NDArray[np.uint8], batch_sizes: Sequence[int], seconds: float
) -> NDArray[np.float64]:
    """Measure images per second, everything in turns: float64[ROUNDS, backends, batch sizes].

    Args:
        backends: what to measure.
        images: uint8[N, H, W, 3]; repeated where a batch is larger.
        batch_sizes: batches to measure with.
        seconds: for all of it together, warm-up aside.
    """
    batches = [list(np.resize(images, (size, *images.shape[1:]))) for size in batch_sizes]
    for backend in backends:
        for batch in batches:
            backend.run(batch)
    slice_s = seconds / (ROUNDS * len(backends) * len(batch_sizes))
    turns = track(range(ROUNDS), "measure speed", console=_progress, transient=True, disable=not _progress.is_terminal)
    return np.array([[[_pace(backend, batch, slice_s) for batch in batches] for backend in backends] for _ in turns])


def times_first(paces: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many times as fast as the first backend each is, by the median of the ratios within each round."""
    ratios: NDArray[np.float64] = np.median(paces / paces[:, :1], axis=0)
    return ratios


def _pace(backend: Backend, batch: Sequence[NDArray[np.uint8]], seconds: float) -> float:
    """Images per second over at least so many seconds, and at least one batch."""
    images, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < seconds or not images:
        backend.run(batch)
        images += len(batch)
    return images / elapsed_s


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
