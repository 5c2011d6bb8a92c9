"""What the service answers. Fields that a newer service may add are passed over."""

from dataclasses import dataclass


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
    """Servers of before it was told leave it out."""


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
    """Of a cascade, the member whose answer it is."""
    cut_short: bool = False
    """Of a cascade: the next member would have been asked, had there been time."""


@dataclass(frozen=True, slots=True)
class Model:
    """One version of a model that is served; `default` answers where none is named."""

    name: str
    version: int
    default: bool


@dataclass(frozen=True, slots=True)
class Models:
    """What is served, and what was refused and why."""

    models: list[Model]
    refused: dict[str, str]


@dataclass(frozen=True, slots=True)
class Problem:
    """An RFC 9457 problem document of the service."""

    title: str
    code: str
    detail: str
    request_id: str
