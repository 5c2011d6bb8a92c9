"""What the engine answers about one image, or one crop of it."""

from collections.abc import Callable, Sequence
from enum import IntFlag, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import Activation, Manifest
from server.repository import Model


class Extras(IntFlag):
    """What a request may want of the same pass besides its classes.

    A number, since every request asks whether it is none: that of a `Flag` is a call of Python's.
    """

    NONE = 0
    LOGITS = auto()
    FEATURES = auto()
    HEATMAP = auto()
    """the activation maps"""


NOTHING = np.empty(0, np.float32)


class Classes(NamedTuple):
    """The classes of one image and how it got them."""

    probabilities: NDArray[np.float32]
    """float32[k], best first; empty where the logits were asked for"""
    indices: NDArray[np.int32]
    """int32[k]"""
    logits: NDArray[np.float32]
    """float32[num_classes]; empty where they were not asked for"""
    queue_s: float
    inference_s: float
    batch_size: int
    """images in the batch that it ran in; 0: the answer was remembered"""
    decode_wait_s: float = 0.0
    decode_s: float = 0.0
    answered_by: str = ""
    """of a cascade, the member whose answer it is"""
    cut_short: bool = False
    """of a cascade: the next member would have been asked, had there been time"""
    features: NDArray[np.float32] = NOTHING
    """float32[C]; empty where they were not asked for"""
    activation_maps: NDArray[np.float32] = NOTHING
    """float32[k, h, w] of the best classes, at most MAPPED_CLASSES; empty where they were not asked for"""
    photo_size: tuple[int, int] = (0, 0)
    """width and height of the photo that was decoded, upright"""
    known: bool | None = None
    """whether the image is of any of the classes; None where that was not asked"""


class Question(NamedTuple):
    """What else is asked about pixels that are there."""

    model: Model
    """that reads images as the one before it"""
    top_k: int | None
    """None: the logits of all classes"""


Follow = Callable[[list[Classes]], Question | None]
"""Told the answers about all crops, it says what is asked about the same pixels next; None: nothing."""


def shaped(answer: Classes, found: Manifest) -> Classes:
    """An answer that came as bytes, its activation maps in the shape that the model's manifest says."""
    if not answer.activation_maps.size or not found.activation_maps:
        return answer
    return answer._replace(activation_maps=answer.activation_maps.reshape(-1, *found.activation_maps))


def average(answers: Sequence[Classes], top_k: int | None, activation: Activation) -> Classes:
    """The `top_k` classes, None: all, by the mean probability over answers with logits; the largest times and sizes."""
    logits = np.stack([answer.logits for answer in answers]).astype(np.float64)
    if activation == "sigmoid":
        probabilities = np.exp(-np.logaddexp(0, -logits)).mean(0)
    else:
        powers = np.exp(logits - logits.max(1, keepdims=True))
        probabilities = (powers / powers.sum(1, keepdims=True)).mean(0)
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    return Classes(
        probabilities[best].astype(np.float32),
        best.astype(np.int32),
        NOTHING,
        max(answer.queue_s for answer in answers),
        max(answer.inference_s for answer in answers),
        max(answer.batch_size for answer in answers),
        max(answer.decode_wait_s for answer in answers),
        max(answer.decode_s for answer in answers),
    )
