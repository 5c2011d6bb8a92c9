"""Models that may replace others (candidates), as their serving.json says, and the reasons why some cannot."""

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from models.manifest import Entry
from server.settings import ModelSettings

if TYPE_CHECKING:
    from server.repository import Model, ModelKey

Role = Literal["shadow", "canary"]


class Candidate(NamedTuple):
    """The newest version of a model that is the shadow or the canary of another."""

    model: "Model"
    role: Role
    main: str
    """name of the model that it may replace"""
    share: float
    """share of that model's images or requests that it gets"""

    @property
    def name(self) -> str:
        """The candidate model's name."""
        return self.model.manifest.name


class Candidates(NamedTuple):
    """All candidates of one catalogue."""

    by_key: "Mapping[ModelKey, Candidate]"
    shadows: Mapping[tuple[str, int], tuple[Candidate, ...]]
    """by name and newest version of the model whose images they get; only for models that are served"""
    canaries: Mapping[str, Candidate]
    """by name of the model whose requests they answer"""

    @classmethod
    def of(cls, models: "Mapping[ModelKey, Model]", versions: Mapping[str, Mapping[int, Entry]]) -> Self:
        """Find the candidates of a catalogue; `versions` holds all that it serves, by name and number."""
        by_key: dict[ModelKey, Candidate] = {}
        shadows: dict[tuple[str, int], tuple[Candidate, ...]] = {}
        canaries: dict[str, Candidate] = {}
        for key, model in sorted(models.items()):
            main, share = model.settings.candidate_for, model.settings.share
            if main is None or share is None or key.version != max(versions[key.name]):
                continue
            by_key[key] = found = Candidate(model, "shadow" if model.settings.shadow_of else "canary", main, share)
            if main not in versions:
                continue
            if found.role == "canary":
                canaries.setdefault(main, found)
            else:
                watched = main, max(versions[main])
                shadows[watched] = *shadows.get(watched, ()), found
        return cls(by_key, shadows, canaries)


def why_not(name: str, settings: Mapping[str, ModelSettings], known: Set[str]) -> str | None:
    """Why a model cannot be the candidate that its serving.json makes it; None if it can, or is not one.

    Args:
        name: the model's.
        settings: settings of all models, by name.
        known: names of all models and recipes in the repository, served or not.
    """
    own = settings[name]
    main = own.candidate_for
    if main is None:
        return None
    if main == name:
        return f"it names itself, {name!r}: name the model that it may replace"
    if main not in known:
        return f"there is no model {main!r} in the repository"
    if (its := settings.get(main)) and its.candidate_for:
        return f"{main!r} is a candidate itself, for {its.candidate_for!r}: name a model that is none"
    others = [each for each, other in settings.items() if other.canary_of == main]
    if own.canary_of and name != (first := min(others)):
        return f"{main!r} has a canary already, {first!r}: a model has one"
    return None
