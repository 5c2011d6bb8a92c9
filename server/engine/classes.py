"""The engine's answer about one image, or one crop of it."""

from collections.abc import Callable, Sequence
from enum import IntFlag, auto
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import Activation, Manifest
from server.repository import Model


class Extras(IntFlag):
    """Outputs of the same pass that a request may want besides its classes.

    An `IntFlag`, since every request tests it for none, and the test of a `Flag` is a call in Python.
    """

    NONE = 0
    LOGITS = auto()
    FEATURES = auto()
    HEATMAP = auto()
    """The activation maps."""


NOTHING = np.empty(0, np.float32)


class Classes(NamedTuple):
    """The classes of one image, and how they were computed."""

    probabilities: NDArray[np.float32]
    """float32[k], best first; empty if logits were requested."""
    indices: NDArray[np.int32]
    """int32[k]."""
    logits: NDArray[np.float32]
    """float32[num_classes]; empty if not requested."""
    queue_s: float
    inference_s: float
    batch_size: int
    """Images in the batch; 0: the answer came from the cache."""
    decode_wait_s: float = 0.0
    decode_s: float = 0.0
    answered_by: str = ""
    """For a cascade, the member whose answer this is."""
    cut_short: bool = False
    """For a cascade, whether only lack of time kept the next member from being asked."""
    features: NDArray[np.float32] = NOTHING
    """float32[C]; empty if not requested."""
    activation_maps: NDArray[np.float32] = NOTHING
    """float32[k, h, w] of the best classes, at most MAPPED_CLASSES; empty if not requested."""
    photo_size: tuple[int, int] = (0, 0)
    """Width and height of the decoded photo, upright."""
    known: bool | None = None
    """Whether the image belongs to any of the classes; None if not requested."""


class Question(NamedTuple):
    """A further question about pixels that are already decoded."""

    model: Model
    """Has the same preprocessing as the model asked before."""
    top_k: int | None
    """None: the logits of all classes."""


Follow = Callable[[list[Classes]], Question | None]
"""Takes the answers about all crops, and returns the next question about the same pixels; None: there is none."""


def shaped(answer: Classes, found: Manifest) -> Classes:
    """Give the activation maps, which arrive flat, the shape in the model's manifest."""
    if not answer.activation_maps.size or not found.activation_maps:
        return answer
    return answer._replace(activation_maps=answer.activation_maps.reshape(-1, *found.activation_maps))


def average(answers: Sequence[Classes], top_k: int | None, activation: Activation) -> Classes:
    """Average the probabilities of answers with logits; `top_k` None keeps all classes. Times: the largest of each."""
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
