"""The model repository as the server sees it: which models it holds, and which of them a request means."""

import contextlib
import hashlib
import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Self, assert_never

from pydantic import ValidationError

from models import hints, manifest
from models.errors import first_mistake
from models.manifest import (
    EXACT,
    Activation,
    Cascade,
    Ensemble,
    Entry,
    Manifest,
    ManifestError,
    Member,
    Recipe,
    UnreadableError,
)
from server import candidates
from server.candidates import Candidates
from server.errors import Code, ServiceError
from server.refusals import Cause, Refusal, printable
from server.settings import OF_CANDIDATES, ModelSettings

PREFERRED_DEFAULTS = ("resnet50", "efficientnet_lite0")
SETTINGS_FILE = "serving.json"
"""File with a model's own settings, in its folder, next to its versions."""
UNREADABLE_S = 5.0
"""Longest wait before the server again tries to read files that it could not read."""

log = logging.getLogger(__name__)


class ModelKey(NamedTuple):
    """One version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}" if self.version else f"every version of {self.name}"

    @property
    def every_version(self) -> "ModelKey":
        """Key of the refusal if the model's folder cannot even be listed."""
        return ModelKey(self.name, 0)


_EVERYTHING = ModelKey("*", 0)
"""Key of the refusal if the repository cannot even be listed."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model as an engine loads it: its manifest, and the settings to serve it with."""

    manifest: Manifest
    settings: ModelSettings
    id: str
    """Digest of all that an engine depends on: while a version is replaced, an engine may have its old and new model.
    """

    @classmethod
    def of(cls, found: Manifest, settings: ModelSettings | None = None) -> Self:
        """Combine a manifest and the model's own settings, if it has any."""
        settings = settings or ModelSettings()
        content = found.model_dump_json() + settings.model_dump_json(exclude={"pinned", *OF_CANDIDATES})
        return cls(found, settings, hashlib.sha256(content.encode()).hexdigest()[:16])

    @property
    def key(self) -> ModelKey:
        """The name and version by which requests name it."""
        return ModelKey(self.manifest.name, self.manifest.version)


@dataclass(frozen=True)
class Catalogue:
    """The models and recipes that can be served, and those that were refused, and why."""

    folder: Path
    models: Mapping[ModelKey, Model]
    recipes: Mapping[ModelKey, Recipe]
    """Ensembles and cascades. Each of their members is in `models`, or is an ensemble in `recipes`."""
    refused: Mapping[ModelKey, Refusal]
    """Versions of models and recipes, and folders without a valid manifest."""
    default_model: str | None
    unloaded: Set[str] = frozenset()
    """Names of models that are in the repository, but were unloaded on request."""

    def __getstate__(self) -> dict[str, object]:
        """Pickle the fields alone: another thread may be adding cached properties."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    @cached_property
    def entries(self) -> Mapping[ModelKey, Entry]:
        """Everything that a request can name."""
        return {**{key: model.manifest for key, model in self.models.items()}, **self.recipes}

    @cached_property
    def versions(self) -> Mapping[str, Mapping[int, Entry]]:
        """The same entries by name and version number."""
        found: dict[str, dict[int, Entry]] = {name: {} for name in sorted({key.name for key in self.entries})}
        for key, entry in self.entries.items():
            found[key.name][key.version] = entry
        return found

    def is_refused(self, key: ModelKey) -> bool:
        """Whether this version was refused, or its model's folder cannot be listed."""
        return key in self.refused or key.every_version in self.refused

    @cached_property
    def candidates(self) -> Candidates:
        """The models of this catalogue that may replace others."""
        return Candidates.of(self.models, self.versions)

    def serving(self, models: Mapping[ModelKey, Model], refused: Mapping[ModelKey, Refusal]) -> "Catalogue":
        """This catalogue with other models and more refusals, and without the recipes that lack a member."""
        refused = {**self.refused, **refused}
        whole = _catalogue(self.folder, models, self.recipes, refused, self.default_model)
        return replace(whole, unloaded=self.unloaded)

    def without(self, names: Set[str]) -> "Catalogue":
        """This catalogue without the models of these names, nor the recipes that lack a member."""
        models = {key: model for key, model in self.models.items() if key.name not in names}
        recipes = {key: found for key, found in self.recipes.items() if key.name not in names}
        default = None if self.default_model in names else self.default_model
        whole = _catalogue(self.folder, models, recipes, self.refused, default)
        return replace(whole, unloaded=self.unloaded | names)

    def resolve(self, name: str | None, version: int | None) -> Entry:
        """The entry that a request means: by default, the newest version of the default model.

        Raises:
            ServiceError: UNKNOWN_MODEL, naming the models served, or MODEL_UNAVAILABLE if the server will try again.
        """
        wanted = self.default_model if name is None else name
        versions = self.versions.get(wanted or "", {})
        found = versions.get(max(versions, default=0) if version is None else version)
        if found:
            return found
        for key, refusal in self.refused.items():
            if key.name == wanted and (version in (None, key.version) or not key.version) and refusal.is_tried_again:
                detail = f"{key} cannot be served for now, and the server will try again: {refusal.reason}"
                raise ServiceError(Code.MODEL_UNAVAILABLE, detail)
        for key, refusal in self.refused.items():
            if not self.entries and refusal.is_tried_again and (key == _EVERYTHING or not wanted):
                detail = f"no model can be served for now, and the server will try again: {refusal.reason}"
                raise ServiceError(Code.MODEL_UNAVAILABLE, detail)
        if not versions:
            names = ", ".join(self.versions) or "none"
            nameless = "no model was named and there is no --default-model"
            problem = nameless if wanted is None else f"there is no model {wanted!r}"
            raise ServiceError(Code.UNKNOWN_MODEL, f"{problem}; models served here: {names}")
        raise ServiceError(
            Code.UNKNOWN_MODEL,
            f"model {wanted!r} has no version {version}; versions served here: {sorted(versions)}",
        )

    def settings(self, entry: Entry) -> ModelSettings:
        """A model's own settings; an ensemble or a cascade has none."""
        return (
            self.models[ModelKey(entry.name, entry.version)].settings
            if isinstance(entry, Manifest)
            else ModelSettings()
        )

    def members(self, entry: Entry) -> list[Model]:
        """The models that an answer may need, each once: the model itself, or those of an ensemble or a cascade."""
        match entry:
            case Manifest():
                return [self.models[ModelKey(entry.name, entry.version)]]
            case Ensemble():
                return [self.models[_key(member)] for member in entry.members]
            case Cascade():
                stages = [self.stage(member) for member in entry.members]
                return list({model.key: model for stage in stages for model in stage}.values())
            case _:
                assert_never(entry)

    def permits(self, entry: Entry) -> int:
        """Permits that a crop needs: one for each member of an ensemble, one for a cascade, which asks in turn."""
        return len(entry.members) if isinstance(entry, Ensemble) else 1

    def stage(self, member: Member) -> list[Model]:
        """The models of a cascade's member, which may be an ensemble."""
        return self.members(self.entries[_key(member)])


def _key(member: Member) -> ModelKey:
    return ModelKey(member.name, member.version)


def _catalogue(
    folder: Path,
    models: Mapping[ModelKey, Model],
    recipes: Mapping[ModelKey, Recipe],
    refused: Mapping[ModelKey, Refusal],
    default_model: str | None,
) -> Catalogue:
    """Make a catalogue. Recipes are refused if a member is missing, or is not the file that they were measured with."""
    whole: dict[ModelKey, Recipe] = {}
    refused = dict(refused)
    for kind in (Ensemble, Cascade):  # in this order, as ensembles may be members of cascades
        there = {**{key: model.manifest for key, model in models.items()}, **whole}
        for key, recipe in recipes.items():
            if isinstance(recipe, kind):
                if refusal := _why_not(recipe, there, refused):
                    refused[key] = refusal
                else:
                    whole[key] = recipe
    return Catalogue(folder, models, whole, refused, default_model)


def _why_not(recipe: Recipe, there: Mapping[ModelKey, Entry], refused: Mapping[ModelKey, Refusal]) -> Refusal | None:
    """Why a recipe cannot be served with the entries that are `there`; None if it can."""
    for member in recipe.members:
        key = _key(member)
        entry = there.get(key)
        if entry is None or isinstance(entry, Cascade):
            why = refused.get(key) or refused.get(key.every_version)
            return Refusal(why.cause if why else Cause.NEVER, f"its member {key} is not served")
        if (entry.file.sha256 if isinstance(entry, Manifest) else entry.fingerprint) != member.sha256:
            return Refusal(Cause.NEVER, f"its member {key} is another file by now")
        if len(entry.labels) != len(recipe.labels):
            return Refusal(Cause.NEVER, f"its member {key} has other classes")
    if len({_activation(there[_key(member)], there) for member in recipe.members}) > 1:
        return Refusal(Cause.NEVER, "some of its members give softmax, others sigmoid: they have no common answer")
    return None


def _activation(entry: Entry, there: Mapping[ModelKey, Entry]) -> Activation:
    return entry.activation if isinstance(entry, Manifest) else _activation(there[_key(entry.members[0])], there)


class Watch:
    """A repository that is read again once it has changed, or if some of it could not be read the last time."""

    def __init__(self, folder: Path, names: Sequence[str], every_s: float, now_s: float, *, whole: bool = True) -> None:
        """Take the present contents as seen.

        Args:
            folder: the repository.
            names: the models to serve; none: all.
            every_s: how often to look; 0: never, unless something cannot be read.
            now_s: the caller's clock.
            whole: whether the caller's scan could read everything; if not, the next look takes all files for changed.

        Raises:
            UnreadableError: the repository cannot be listed.
        """
        self._folder = folder
        self._names = tuple(names)
        self._every_s = every_s or math.inf
        self._looked_s = now_s
        self._whole = whole
        self._seen: Mapping[Path, tuple[int, int, int]] = signature(folder) if whole else {}

    def is_due(self, now_s: float) -> bool:
        """Whether it is time to look."""
        every_s = self._every_s if self._whole else min(self._every_s, UNREADABLE_S)
        return now_s >= self._looked_s + every_s

    def look(
        self, now_s: float, asked_for: Iterable[str] = (), *, again: bool = False
    ) -> tuple[Catalogue, Set[ModelKey]] | None:
        """Scan the repository if it has changed; None: it has not, or it is too soon to look.

        Returns the catalogue, and the versions whose files have changed. A repository that cannot be served is scanned
        again only once a file changes, but one with unreadable files every time. With `again` it is scanned in any
        case, and all files count as changed.

        Raises:
            ManifestError: as `scan`.
        """
        if not (again or self.is_due(now_s)):
            return None
        self._looked_s = now_s
        whole, self._whole = self._whole, False
        seen = signature(self._folder)
        if seen == self._seen and whole and not again:
            self._whole = True
            return None
        try:
            found = self.scan(asked_for)
        except UnreadableError:
            raise
        except ManifestError:
            self._seen, self._whole = seen, True
            raise
        before, self._seen = self._seen, seen
        self._whole = not any(refusal.is_tried_again for refusal in found.refused.values())
        changed = {path for path in seen if seen[path] != before.get(path)}
        self._warn_of_replaced(found, changed & before.keys())
        parts = (path.relative_to(self._folder).parts for path in (seen if again else changed))
        return found, {ModelKey(name, int(number)) for name, number, *_ in parts if number.isdecimal()}

    def scan(self, asked_for: Iterable[str] = ()) -> Catalogue:
        """Read it as it is now: the models to serve, and of those requested later the ones that it has.

        Raises:
            ManifestError: as the function `scan`.
        """
        return scan(self._folder, self._names, also=asked_for)

    def _warn_of_replaced(self, found: Catalogue, changed: Set[Path]) -> None:
        """Warn of model files that have changed while their manifests have not."""
        for key, model in found.models.items():
            version = self._folder / key.name / str(key.version)
            if version / model.manifest.file.name in changed and version / manifest.FILE_NAME not in changed:
                log.warning(
                    "%s of %s was changed in place: the engine keeps the file that it has loaded, and loads this one"
                    " only if its digest is the manifest's; publish another version instead",
                    model.manifest.file.name,
                    key,
                )


def scan(
    folder: Path, names: tuple[str, ...] = (), default_model: str | None = None, also: Iterable[str] = ()
) -> Catalogue:
    """Read all manifests of a repository, or those of the models in `names` and of their members.

    With `names`, also those of the models in `also`, which unlike the others may be missing.

    Raises:
        ManifestError: there is no model to serve, or one in `names` is missing.
        UnreadableError: the same, while something cannot be read.
    """
    found, lacking = _read(folder, names, default_model, also)
    if lacking:
        raise lacking
    return found


def first_scan(folder: Path, names: tuple[str, ...] = (), default_model: str | None = None) -> Catalogue:
    """As `scan`, for a server that starts: files that cannot be read are refused, even if nothing is left to serve.

    Raises:
        ManifestError: there is no model to serve, or one in `names` is missing, although everything could be read.
    """
    try:
        found, lacking = _read(folder, names, default_model)
    except UnreadableError as error:
        return Catalogue(folder, {}, {}, {_EVERYTHING: Refusal.of(error)}, default_model)
    if lacking and not isinstance(lacking, UnreadableError):
        raise lacking
    return found


def _read(
    folder: Path, names: tuple[str, ...], default_model: str | None, also: Iterable[str] = ()
) -> tuple[Catalogue, ManifestError | None]:
    """The catalogue, and the error that `scan` raises if it lacks a model that is needed.

    Raises:
        ManifestError: the default model is not among `names`.
        UnreadableError: the repository cannot be listed.
    """
    entries: dict[ModelKey, Entry] = {}
    refused: dict[ModelKey, Refusal] = {}
    for model in _models(folder):
        try:
            versions = [path for path in _listed(model) if path.name.isdecimal()]
        except UnreadableError as error:
            if re.match(manifest.NAME, model.name):  # not the `lost+found` of a volume's root
                refused[ModelKey(model.name, 0)] = Refusal.of(error)
            continue
        # A version's folder is named by its number; an export in progress has another name until it is complete.
        for path in versions:
            try:
                found = manifest.read_entry(path)
                entries[ModelKey(found.name, found.version)] = found
            except ManifestError as error:
                refused[ModelKey(printable(model.name), int(path.name))] = Refusal.of(error)
    recipes = {key: found for key, found in entries.items() if not isinstance(found, Manifest)}
    known = {key.name for key in (*entries, *refused)}
    if names:
        wanted = {*names, *also}
        for _ in range(2):  # first the members of cascades, then those of ensembles among them
            wanted |= {member.name for key, found in recipes.items() if key.name in wanted for member in found.members}
        recipes = {key: found for key, found in recipes.items() if key.name in wanted}
        refused = {key: refusal for key, refusal in refused.items() if key.name in wanted}
        entries = {key: found for key, found in entries.items() if key.name in wanted}
    models: dict[ModelKey, Model] = {}
    for key, found in entries.items():
        if isinstance(found, Manifest):
            try:
                models[key] = Model.of(found, _settings(folder / key.name))
            except ManifestError as error:
                refused[key] = Refusal.of(error)
    own = {key.name: model.settings for key, model in models.items()}
    for key in list(models):
        if reason := candidates.why_not(key.name, own, known):
            del models[key]
            refused[key] = Refusal(Cause.NEVER, f"{folder / key.name / SETTINGS_FILE}: {reason}")
    there = {key.name for key in (*models, *recipes)}
    reasons = "".join(f"; {refusal.reason}" for refusal in refused.values())
    passing = any(refusal.is_tried_again for refusal in refused.values())
    lacking = UnreadableError if passing else ManifestError
    if names and default_model and default_model not in names:
        raise ManifestError(f"the default model {default_model!r} is not among the models to serve: {', '.join(names)}")
    catalogue = _catalogue(folder, models, recipes, refused, default_model or _default(models, set(names) or there))
    for name in (*names, *([default_model] if default_model else [])):
        if name not in there:
            meant = "" if name in known else hints.meant(name, known)
            to_do = hints.export("to_onnx", name) + (f", or {meant}" if meant else "")
            return catalogue, lacking(f"model {name!r} is not in {folder}: {to_do}{reasons}")
    if not models:
        return catalogue, lacking(f"no model in {folder}: {hints.export('to_onnx')} makes one{reasons}")
    return catalogue, None


def signature(folder: Path) -> Mapping[Path, tuple[int, int, int]]:
    """Time of change in ns, inode and size of every file and folder, by path: differs once any of them has changed.

    Times are ctimes: an mtime can be set, and copies keep it.

    What a folder that cannot be listed has in it is left out; `scan` refuses it.

    Raises:
        UnreadableError: the repository cannot be listed.
    """
    found: dict[Path, tuple[int, int, int]] = {}
    for model in _models(folder):
        files = _listed_if_readable(model)
        for path in (*files, *(each for version in files for each in _listed_if_readable(version))):
            with contextlib.suppress(OSError):  # removed meanwhile
                status = path.stat()
                found[path] = status.st_ctime_ns, status.st_ino, status.st_size
    return found


def _models(folder: Path) -> list[Path]:
    """Folders of models; hidden ones are not: runtimes, volumes and people put theirs there."""
    return [path for path in _listed(folder) if not path.name.startswith(".")]


def _listed_if_readable(folder: Path) -> list[Path]:
    try:
        return _listed(folder)
    except UnreadableError:
        return []


def _listed(folder: Path) -> list[Path]:
    """Entries of a folder, sorted; none if it is not a folder, or has been removed.

    Raises:
        UnreadableError: it cannot be listed, so its entries must not be taken for removed.
    """
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableError(f"{folder}: {error.strerror}") from error


def _settings(folder: Path) -> ModelSettings:
    """Read a model's own settings, if it has any.

    Raises:
        UnreadableError: the file cannot be read.
        ManifestError: a setting is not valid.
    """
    path = folder / SETTINGS_FILE
    try:
        return ModelSettings.model_validate_json(path.read_bytes()) if path.is_file() else ModelSettings()
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        raise ManifestError(f"{path}: {first_mistake(error)}") from error


def _default(models: Mapping[ModelKey, Model], names: set[str]) -> str | None:
    """The default model: the only one, else a preferred one or its exact cascade.

    TensorRT engines and candidates count only if there is nothing else.
    """
    engines = {key.name for key, model in models.items() if model.manifest.tensorrt}
    names = names - {key.name for key, model in models.items() if model.settings.candidate_for} or names
    meant = names - engines or names
    if len(meant) == 1:
        return next(iter(meant))
    preferred = (each for name in PREFERRED_DEFAULTS for each in (name + EXACT, name))
    return next((name for name in preferred if name in meant), None)
