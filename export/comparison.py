"""Two or more ways to run one classifier, compared on the same images: answers, accuracy, and speed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from export import console, samples
from models.manifest import Accuracy, Activation, CropCount, Manifest
from server.engine.backends import Backend

ROUNDS = 5
"""Every backend has a turn in each round, so that a machine that slows down affects all of them alike."""
SURE = 0.05
"""A classifier is sure of its best class if the second is less probable by more than this."""
_PHOTOS_AT_ONCE = 8


@dataclass(frozen=True)
class Answers:
    """The answers of one way to run a classifier."""

    logits: NDArray[np.float32]
    """float32[M, crops, num_classes], the centre crop first."""
    activation: Activation

    @classmethod
    def of_all(cls, parts: Sequence["Answers"]) -> Self:
        """Join the answers to successive images."""
        return cls(np.concatenate([part.logits for part in parts]), parts[0].activation)

    def best(self) -> NDArray[np.int64]:
        """Best class of each image's centre crop, int64[M]: see the function `best`."""
        return best(self.logits[:, 0])

    def top1_agreement(self, reference: "Answers") -> float:
        """Share of the images whose centre crop has the same best class."""
        return float(np.mean(self.best() == reference.best()))

    def max_logit_error(self, reference: "Answers") -> float:
        """Largest difference of a logit, over all crops."""
        return float(np.abs(self.logits - reference.logits).max())

    def sure_disagreements(self, reference: "Answers") -> int:
        """Number of images with another best class although the reference was sure of its own."""
        ranked = np.sort(reference.probabilities()[:, 0], axis=1)
        margin = ranked[:, -1] - ranked[:, -2] if ranked.shape[1] > 1 else np.abs(2 * ranked[:, 0] - 1)
        return int(np.sum((self.best() != reference.best()) & (margin > SURE)))

    def divergences(self, reference: "Answers") -> NDArray[np.float64]:
        """Kullback-Leibler divergence of each centre crop's answer from the reference's in nats, float64[M].

        For independent probabilities (sigmoid), it is the sum over the classes, each a yes or no.
        """
        ours, theirs = self.logits[:, 0].astype(np.float64), reference.logits[:, 0].astype(np.float64)
        both = [_log_probabilities(logits, self.activation) for logits in (ours, theirs)]
        if self.activation == "sigmoid":  # 1 - sigmoid(x) = sigmoid(-x)
            against = [_log_probabilities(-logits, self.activation) for logits in (ours, theirs)]
            both = [np.concatenate(pair, axis=1) for pair in zip(both, against, strict=True)]
        log_ours, log_theirs = both
        divergences: NDArray[np.float64] = (np.exp(log_theirs) * (log_theirs - log_ours)).sum(1)
        return divergences

    def probabilities(self) -> NDArray[np.float64]:
        """Return float64[M, crops, num_classes]."""
        return probabilities(self.logits, self.activation)

    def accuracy(self, classes: NDArray[np.int64], crops: int = 1) -> Accuracy:
        """Accuracy in percent, by the mean probability over the first so many crops."""
        return accuracy(self.probabilities()[:, :crops].mean(1), classes)


def best(logits: NDArray[np.floating]) -> NDArray[np.int64]:
    """The class with the largest logit, int64[M] of [M, num_classes]; of one class, whether it is more likely than not.

    Otherwise two files of a network with one logit would always agree.
    """
    found: NDArray[np.int64] = logits.argmax(1) if logits.shape[1] > 1 else (logits[:, 0] > 0).astype(np.int64)
    return found


def probabilities(logits: NDArray[np.floating], activation: Activation) -> NDArray[np.float64]:
    """Compute what the graph does, more precisely: float64 of the logits' shape."""
    return np.exp(_log_probabilities(logits.astype(np.float64), activation))


def accuracy(probabilities: NDArray[np.float64], classes: NDArray[np.int64]) -> Accuracy:
    """Accuracy in percent of float64[M, num_classes], where the right classes are int64[M]."""
    right = np.argsort(-probabilities, axis=1, kind="stable")[:, :5] == classes[:, None]
    return Accuracy(top1=100 * float(right[:, 0].mean()), top5=100 * float(right.any(1).mean()))


def answers(backends: Sequence[Backend], paths: Sequence[Path], model: Manifest, crops: CropCount = 1) -> list[Answers]:
    """Run the same images on each backend, a few at a time, read as `model` needs them.

    Raises:
        ImagesError: one cannot be read.
    """
    collected: list[list[NDArray[np.float32]]] = [[] for _ in backends]
    starts = range(0, len(paths), _PHOTOS_AT_ONCE)
    for start in console.track(starts, "compare answers"):
        pixels = samples.pixels(paths[start : start + _PHOTOS_AT_ONCE], model.preprocessing, crops)
        images = list(pixels.reshape(-1, *pixels.shape[2:]))
        for parts, backend in zip(collected, backends, strict=True):
            parts.append(backend.run(images).logits.reshape(*pixels.shape[:2], -1))
    return [Answers(np.concatenate(parts), model.activation) for parts in collected]


def paces(
    backends: Sequence[Backend], images: NDArray[np.uint8], batch_sizes: Sequence[int], seconds: float
) -> NDArray[np.float64]:
    """Measure images per second, the backends in turns: float64[ROUNDS, backends, batch sizes].

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
    turns = console.track(range(ROUNDS), "measure speed")
    return np.array([[[_pace(backend, batch, slice_s) for batch in batches] for backend in backends] for _ in turns])


def times_first(paces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Speed of each backend as a multiple of the first one's: the median of the ratios within each round."""
    ratios: NDArray[np.float64] = np.median(paces / paces[:, :1], axis=0)
    return ratios


def _pace(backend: Backend, batch: Sequence[NDArray[np.uint8]], seconds: float) -> float:
    """Images per second, measured for at least this long and over at least one batch."""
    images, started_s = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - started_s) < seconds or not images:
        backend.run(batch)
        images += len(batch)
    return images / elapsed_s


def _log_probabilities(logits: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    if activation == "sigmoid":
        return -np.logaddexp(0, -logits)
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result
