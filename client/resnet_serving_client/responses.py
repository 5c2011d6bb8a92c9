"""The answers of the service. Fields that a newer service may add are ignored."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
else:
    Floats = Any  # importing NumPy takes a tenth of a second, and few programs need it

Include = Literal["logits", "features", "heatmap"]
"""What a request may ask for besides the classes."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class and how probable it is, from 0 to 1."""

    class_id: int
    label: str
    probability: float
    wordnet_id: str | None = None


@dataclass(frozen=True, slots=True)
class Timings:
    """Milliseconds in the server; `total` is from the last byte of the upload."""

    decode: float
    queue: float
    inference: float
    total: float
    decode_wait: float = 0.0
    """Older servers leave it out."""


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Where in the photo the logits of the best classes come from: class activation maps."""

    class_ids: list[int]
    maps: Floats
    """float32[k, h, w]: one for each of these classes. The mean of a map and the class's bias are its logit."""
    box: tuple[float, float, float, float]
    """The part of the upright photo that the maps cover: left, top, right and bottom as shares of its width and height;
    below 0 or above 1 where the network saw more than the photo."""


@dataclass(frozen=True, slots=True)
class Classification:
    """The classes of one image, the most probable first."""

    model: str
    version: int
    random_weights: bool
    """The network is untrained: the predictions mean nothing."""
    predictions: list[Prediction]
    timings_ms: Timings
    batch_size: int
    request_id: str
    answered_by: str | None = None
    """The member of a cascade that gave the answer."""
    cut_short: bool = False
    """A cascade would have asked its next member, but there was no time."""
    logits: Floats | None = None
    """float32[number of classes]; None if not included"""
    features: Floats | None = None
    """float32[C]: the input of the network's last layer; None if not included"""
    heatmap: Heatmap | None = None
    """None if not included"""
    coverage: float | None = None
    """If it was asked for: the true class is among the predictions with at least this probability."""
    known: bool | None = None
    """False: the image may belong to none of the classes; None if `reject` was not asked for."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The features of one image."""

    model: str
    version: int
    random_weights: bool
    """The network is untrained: its features mean little."""
    features: Floats
    """float32[C]"""


Answer = TypeVar("Answer")


def with_arrays(answer: Answer) -> Answer:
    """The answer with NumPy arrays in place of bytes and lists."""
    import numpy as np

    if isinstance(answer, Embedding):
        return replace(answer, features=np.frombuffer(answer.features, "<f4"))
    if not isinstance(answer, Classification):
        return answer
    changes: dict[str, Any] = {}
    if answer.logits is not None:
        changes["logits"] = np.array(answer.logits, np.float32)
    if answer.features is not None:
        changes["features"] = np.frombuffer(answer.features, "<f4")
    if answer.heatmap is not None:
        changes["heatmap"] = replace(answer.heatmap, maps=np.array(answer.heatmap.maps, np.float32))
    return replace(answer, **changes)


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a served model; the `default` one answers requests that name none."""

    name: str
    version: int
    default: bool


@dataclass(frozen=True, slots=True)
class Models:
    """The served models, and the refused ones with the reason."""

    models: list[Model]
    refused: dict[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """An RFC 9457 problem document of the service."""

    title: str
    code: str
    detail: str
    request_id: str
