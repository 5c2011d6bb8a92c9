"""The model repository as the server sees it: which models there are, and which one a request means."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models import manifest
from models.manifest import Ensemble, Entry, Manifest, ManifestError
from server.errors import Code, ServiceError

PREFERRED_DEFAULTS = ("resnet50", "efficientnet_lite0")


class ModelKey(NamedTuple):
    """One version of one model."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What can be served, and what was refused and why."""

    folder: Path
    manifests: Mapping[ModelKey, Manifest]
    ensembles: Mapping[ModelKey, Ensemble]
    """Every member of each is in `manifests`."""
    refused: Mapping[str, str]
    """Reasons by what was refused: a version of a model, or a folder that has no valid manifest."""
    default_model: str | None

    @property
    def entries(self) -> Mapping[ModelKey, Entry]:
        """All that a request can name."""
        return {**self.manifests, **self.ensembles}

    def refuse(self, reasons: Mapping[ModelKey, str]) -> "Catalogue":
        """The same without the models in `reasons`, which could not be loaded, and without what needs them."""
        kept = {key: found for key, found in self.manifests.items() if key not in reasons}
        refused = {**self.refused, **{str(key): reason for key, reason in reasons.items()}}
        return _catalogue(self.folder, kept, self.ensembles, refused, self.default_model)

    def resolve(self, name: str | None, version: int | None) -> Entry:
        """What a request means: the default model where it names none, and of each the newest version.

        Raises:
            ServiceError: UNKNOWN_MODEL, naming what there is.
        """
        wanted = name or self.default_model
        versions = {key.version: found for key, found in self.entries.items() if key.name == wanted}
        if not versions:
            names = ", ".join(sorted({key.name for key in self.entries})) or "none"
            problem = f"there is no model {wanted!r}" if wanted else "no model was named and there is no default model"
            raise ServiceError(Code.UNKNOWN_MODEL, f"{problem}; models served here: {names}")
        found = versions.get(max(versions) if version is None else version)
        if found is None:
            raise ServiceError(
                Code.UNKNOWN_MODEL,
                f"model {wanted!r} has no version {version}; versions served here: {sorted(versions)}",
            )
        return found

    def members(self, entry: Entry) -> list[Manifest]:
        """The models to ask: an ensemble's members, or the model itself."""
        if isinstance(entry, Manifest):
            return [entry]
        return [self.manifests[ModelKey(member.name, member.version)] for member in entry.members]


def _catalogue(
    folder: Path,
    manifests: Mapping[ModelKey, Manifest],
    ensembles: Mapping[ModelKey, Ensemble],
    refused: Mapping[str, str],
    default_model: str | None,
) -> Catalogue:
    """Refuse the ensembles that lack a member, or whose member is not the file that was measured."""
    whole: dict[ModelKey, Ensemble] = {}
    broken: dict[str, str] = {}
    for key, ensemble in ensembles.items():
        for member in ensemble.members:
            found = manifests.get(ModelKey(member.name, member.version))
            if found is None:
                broken[str(key)] = f"its member {member.name} version {member.version} is not served"
            elif found.file.sha256 != member.sha256:
                broken[str(key)] = f"its member {member.name} version {member.version} is another file by now"
            elif found.num_classes != len(ensemble.labels):
                broken[str(key)] = f"its member {member.name} version {member.version} has other classes"
        if str(key) not in broken:
            whole[key] = ensemble
    return Catalogue(folder, manifests, whole, {**refused, **broken}, default_model)


def scan(folder: Path, names: tuple[str, ...] = (), default_model: str | None = None) -> Catalogue:
    """Read all manifests of a repository, or those of the models in `names` and of their members.

    Raises:
        ManifestError: there is no model to serve, or one that was asked for is missing.
    """
    entries: dict[ModelKey, Entry] = {}
    refused: dict[str, str] = {}
    # A version's folder is named by its number; an export in progress has another name until it is complete.
    for path in sorted(path for path in folder.glob("*/*") if path.name.isdecimal()):
        try:
            found = manifest.read_entry(path)
            entries[ModelKey(found.name, found.version)] = found
        except ManifestError as error:
            refused[f"{path.parent.name}/{path.name}"] = str(error)
    ensembles = {key: found for key, found in entries.items() if isinstance(found, Ensemble)}
    if names:
        ensembles = {key: found for key, found in ensembles.items() if key.name in names}
        wanted = {*names, *(member.name for found in ensembles.values() for member in found.members)}
        refused = {where: reason for where, reason in refused.items() if where.partition("/")[0] in wanted}
        entries = {key: found for key, found in entries.items() if key.name in wanted}
    manifests = {key: found for key, found in entries.items() if isinstance(found, Manifest)}
    there = {key.name for key in (*manifests, *ensembles)}
    reasons = "".join(f"; {reason}" for reason in refused.values())
    if names and default_model and default_model not in names:
        raise ManifestError(f"the default model {default_model!r} is not among the models to serve: {', '.join(names)}")
    for name in (*names, *([default_model] if default_model else [])):
        if name not in there:
            raise ManifestError(f"model {name!r} is not in {folder}: python export/to_onnx.py {name}{reasons}")
    if not manifests:
        raise ManifestError(f"no model in {folder}: python export/to_onnx.py makes one{reasons}")
    return _catalogue(folder, manifests, ensembles, refused, default_model or _default(manifests, set(names) or there))


def _default(manifests: Mapping[ModelKey, Manifest], names: set[str]) -> str | None:
    """The only one, else the preferred; an engine beside the model that it was built from is never meant."""
    engines = {key.name for key, found in manifests.items() if found.tensorrt}
    meant = names - engines or names
    if len(meant) == 1:
        return next(iter(meant))
    return next((name for name in PREFERRED_DEFAULTS if name in meant), None)
