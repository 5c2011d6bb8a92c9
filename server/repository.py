"""The model repository as the server sees it: which models there are, and which one a request means."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from models import manifest
from models.manifest import Manifest, ManifestError
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
    refused: Mapping[str, str]
    """Reasons by what was refused: a model's version, or a folder that has no valid manifest."""
    default_model: str | None

    def refuse(self, reasons: Mapping[ModelKey, str]) -> "Catalogue":
        """The same without the models in `reasons`: they could not be loaded."""
        kept = {key: found for key, found in self.manifests.items() if key not in reasons}
        refused = {**self.refused, **{str(key): reason for key, reason in reasons.items()}}
        return Catalogue(self.folder, kept, refused, self.default_model)

    def resolve(self, name: str | None, version: int | None) -> Manifest:
        """The manifest of the model that a request means: the default model, and of each the newest version.

        Raises:
            ServiceError: UNKNOWN_MODEL, naming what there is.
        """
        wanted = name or self.default_model
        versions = {key.version: found for key, found in self.manifests.items() if key.name == wanted}
        if not versions:
            names = ", ".join(sorted({key.name for key in self.manifests})) or "none"
            problem = f"there is no model {wanted!r}" if wanted else "no model was named and there is no default model"
            raise ServiceError(Code.UNKNOWN_MODEL, f"{problem}; models served here: {names}")
        found = versions.get(max(versions) if version is None else version)
        if found is None:
            raise ServiceError(
                Code.UNKNOWN_MODEL,
                f"model {wanted!r} has no version {version}; versions served here: {sorted(versions)}",
            )
        return found


def scan(folder: Path, names: tuple[str, ...] = (), default_model: str | None = None) -> Catalogue:
    """Read all manifests of a repository, or those of the models in `names`.

    Raises:
        ManifestError: there is no model to serve, or one that was asked for is missing.
    """
    manifests: dict[ModelKey, Manifest] = {}
    refused: dict[str, str] = {}
    # A version's folder is named by its number; an export in progress has another name until it is complete.
    versions = (path for path in folder.glob("*/*") if path.name.isdecimal())
    for path in sorted(versions):
        if names and path.parent.name not in names:
            continue
        try:
            found = manifest.read(path)
            manifests[ModelKey(found.name, found.version)] = found
        except ManifestError as error:
            refused[f"{path.parent.name}/{path.name}"] = str(error)
    there = {key.name for key in manifests}
    reasons = "".join(f"; {reason}" for reason in refused.values())
    if names and default_model and default_model not in names:
        raise ManifestError(f"the default model {default_model!r} is not among the models to serve: {', '.join(names)}")
    for wanted in (*names, *([default_model] if default_model else [])):
        if wanted not in there:
            raise ManifestError(f"model {wanted!r} is not in {folder}: python export/to_onnx.py {wanted}{reasons}")
    if not there:
        raise ManifestError(f"no model in {folder}: python export/to_onnx.py makes one{reasons}")
    return Catalogue(folder, manifests, refused, default_model or _default(there))


def _default(names: set[str]) -> str | None:
    if len(names) == 1:
        return next(iter(names))
    return next((name for name in PREFERRED_DEFAULTS if name in names), None)
