"""What the config of a published model says, whichever library wrote it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from models.architectures import Architecture
from models.errors import ExpectedError, first_mistake
from models.hub import Place, SourceError
from models.manifest import Activation, Interpolation, Label, Preprocessing


@dataclass(frozen=True)
class Ours:
    """A network that `models.networks` builds."""

    name: str
    """Text for the manifest."""
    architecture: str | Architecture


@dataclass(frozen=True)
class Timm:
    """A network that only timm defines."""

    name: str
    arguments: Mapping[str, Any]
    """Arguments of `timm.create_model`, except the number of classes."""


@dataclass(frozen=True)
class Transformers:
    """A network that only transformers defines."""

    name: str
    config: Path
    """The file `config.json`."""


Network = Ours | Timm | Transformers


class UnknownPreprocessingError(ExpectedError):
    """The files do not state the preprocessing, or this project cannot do it; the message is the reason."""


@dataclass(frozen=True)
class Published:
    """Everything a model's files say, except its parameters."""

    network: Network
    preprocessing: Preprocessing | UnknownPreprocessingError
    activation: Activation
    labels: tuple[Label, ...]
    named: bool
    """Whether the labels are real names; otherwise they are numbers."""
    mistake: str = ""
    """Why the names cannot be used, to follow the model's name; "": there is no reason."""


class Config(BaseModel):
    """Base for files that other tools wrote: unknown keys are ignored, and null counts as absent."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, content: object) -> object:
        if not isinstance(content, Mapping):
            return content
        return {key: value for key, value in content.items() if value is not None}


_C = TypeVar("_C", bound=Config)


def checked(kind: type[_C], content: Mapping[str, Any], place: Place) -> _C:
    """Validate a config as `kind`.

    Raises:
        SourceError: it is not valid.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        mistake = first_mistake(error)
        raise SourceError(f"the config of {place.origin} is not as its library writes it: {mistake}") from error


def read_json(place: Place, name: str) -> dict[str, Any]:
    """Read an existing JSON file of a model.

    Raises:
        SourceError: it cannot be fetched or read, or is not a JSON object.
    """
    path = place.file(name)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{name} of {place.origin} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise SourceError(f"{name} of {place.origin} is no JSON object")
    return content


def preprocessing(found: Mapping[str, Any]) -> Preprocessing | UnknownPreprocessingError:
    """Express a library's preprocessing in our terms, or return why that is impossible."""
    if found["interpolation"] not in get_args(Interpolation):
        return UnknownPreprocessingError(f"its interpolation is {found['interpolation']}")
    try:
        return Preprocessing.model_validate(found)
    except ValidationError as error:
        return UnknownPreprocessingError(first_mistake(error))
