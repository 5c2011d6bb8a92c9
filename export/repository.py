"""The model repository on disk: `<name>/<version>/` with the model file and its manifest.

A version appears whole or not at all: it is written beside its place and renamed into it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from models import hints, manifest
from models.errors import ExpectedError
from models.manifest import Cascade, Confidence, Ensemble, Entry, Manifest, ManifestError, ModelFile

AnyEntry = TypeVar("AnyEntry", Manifest, Ensemble, Cascade)


class RepositoryError(ExpectedError):
    """The repository has no such model, the file is not the manifest's, or the repository cannot be written."""


def get(repository: Path, name: str, version: int | None = None) -> Manifest:
    """Return the manifest of a model, of its newest version if none is given.

    Raises:
        RepositoryError: it is not there, cannot be read, or has no file of its own.
    """
    versions = newest_first(repository / name)
    found = next((known for known in versions if version in (None, known.version)), None)
    if found is None:
        raise RepositoryError(_why_not(repository, name, version))
    return found


def get_entry(repository: Path, name: str, version: int | None = None) -> Entry:
    """Return the model, ensemble or cascade of this name, in its newest version if none is given.

    Raises:
        RepositoryError: it is not there, or cannot be read.
    """
    found = next((known for known in _entries(repository / name) if version in (None, known.version)), None)
    if found is None:
        raise RepositoryError(_why_not(repository, name, version))
    return found


def _why_not(repository: Path, name: str, version: int | None) -> str:
    """Say why there is no such model, or what has its name instead."""
    folder = repository / name
    for number in reversed(_versions(folder)):
        if version in (None, number):
            try:
                return _other_than_wanted(manifest.read_entry(folder / str(number)))
            except ManifestError as error:
                return str(error)
    if not repository.is_dir():
        return f"there is no model repository {repository}: run this in the folder that has it, or name it"
    lacking = f"{repository} has no {name if version is None else f'{name} version {version}'}"
    if folder.is_dir():
        return lacking
    names = sorted(path.name for path in repository.iterdir() if _versions(path))
    there = f"it has {', '.join(names) or 'no models'}"
    return f"{lacking}; {hints.meant(name, names) or there}"


def _other_than_wanted(known: Entry) -> str:
    """Say what has the name of an FP32 model, and what to name instead."""
    if not isinstance(known, Manifest):
        return f"{known.name} is {manifest.called(known)}: name one of its members, {manifest.members_of(known)}"
    what = f"{known.name} is a file of {known.backend} in {known.precision}, not of ONNX in FP32"
    return f"{what}: name {known.conversion.source}, which it was made from" if known.conversion else what


def read(repository: Path, model: Manifest) -> bytes:
    """Read a model's file.

    Raises:
        RepositoryError: it is missing, or its digest is not the manifest's.
    """
    try:
        return manifest.read_model_file(repository / model.name / str(model.version), model)
    except ManifestError as error:
        raise RepositoryError(str(error)) from error


def find(repository: Path, name: str, fingerprint: str) -> Entry | None:
    """Return a model's version with this fingerprint, if there is one; versions with broken manifests do not count."""
    return next((known for known in _entries(repository / name) if known.fingerprint == fingerprint), None)


def find_fp32(repository: Path, name: str) -> Manifest | None:
    """Return a model's newest version that is an ONNX file in FP32; None if there is no model of this name.

    Raises:
        RepositoryError: this name belongs to something else.
    """
    kind = ("onnx", "fp32")
    versions = newest_first(repository / name)
    found = next((known for known in versions if (known.backend, known.precision) == kind), None)
    if found is None and _versions(repository / name):
        raise RepositoryError(_why_not(repository, name, None))
    return found


def find_as_it_came(repository: Path, name: str, precision: str) -> Manifest | None:
    """Return a model's newest version that was imported in this precision, not made from a file in FP32."""
    kind = ("onnx", precision, None)
    versions = newest_first(repository / name)
    return next((known for known in versions if (known.backend, known.precision, known.conversion) == kind), None)


def newest(repository: Path, name: str) -> Entry | None:
    """Return the version that a server serves under this name; None if there is none."""
    return next(_entries(repository / name), None)


def find_int8_for_gpus(repository: Path, name: str) -> Manifest:
    """Return the newest INT8 file for GPUs that has this name or was made from the model of this name.

    Raises:
        RepositoryError: there is none.
    """

    def fits(known: Manifest) -> bool:
        if (known.backend, known.precision) != ("onnx", "int8") or not (made := known.conversion):
            return False
        return name in (known.name, made.source) and made.calibration is not None and made.calibration.target == "gpu"

    found = [known for folder in repository.glob("*") for known in newest_first(folder) if fits(known)]
    if not found:
        raise RepositoryError(
            f"{repository} has no INT8 file of {name} for GPUs: export/quantize.py {name} --target gpu makes one"
        )
    return max(found, key=lambda known: known.created)


def digest(ingredients: object) -> str:
    """Compute a version's fingerprint from everything that determines it, which JSON must be able to express."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


def model_file(name: str, content: bytes) -> ModelFile:
    """Describe a model's file, for its manifest."""
    return ModelFile(name=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


def derive(source: Manifest, file_name: str, content: bytes, **changes: object) -> Manifest:
    """Draft the manifest of a file that was made from a model: the model's manifest, with `changes`.

    The file keeps the model's temperature, but is not calibrated itself, and has not been compared with the logits
    expected of the model.
    """
    made = {
        "created": datetime.now(UTC),
        "file": model_file(file_name, content),
        "expectation": None,
        "confidence": source.confidence and Confidence(temperature=source.confidence.temperature),
    }
    return Manifest(**dict(source) | made | changes)


def check_room(repository: Path, needed_bytes: int = 0) -> None:
    """Check beforehand that a file of about this size can be added.

    Raises:
        RepositoryError: the folder cannot be written, or its disk is too full.
    """
    folder = next(folder for folder in (repository, *repository.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be written: {error.strerror}") from error
    if free < needed_bytes:
        raise RepositoryError(f"{repository} has {free / 1e6:.0f} MB left, and {needed_bytes / 1e6:.0f} MB are needed")


def next_version(repository: Path, name: str) -> int:
    """Return the number that a model gets if it is published now."""
    return max(_versions(repository / name), default=0) + 1


def publish(repository: Path, draft: AnyEntry, model: bytes | None = None) -> AnyEntry:
    """Add a model under the next free version number, whatever number the draft has; a recipe has no file.

    If another process has published the same fingerprint in the meantime, return that version and add nothing.

    Raises:
        RepositoryError: the folder cannot be written.
    """
    folder = repository / draft.name
    # A leading dot hides the folder from readers of the repository; the same file system makes the rename atomic.
    draft_folder = folder / f".draft-{uuid4().hex}"
    try:
        draft_folder.mkdir(parents=True)
        try:
            if isinstance(draft, Manifest) and model is not None:
                _write(draft_folder / draft.file.name, model)
            return _claim(repository, draft_folder, draft)
        finally:
            shutil.rmtree(draft_folder, ignore_errors=True)
    except OSError as error:
        raise RepositoryError(f"{folder} cannot be written: {error.strerror}") from error


def _claim(repository: Path, draft_folder: Path, draft: AnyEntry) -> AnyEntry:
    folder = draft_folder.parent
    while True:
        # Choose the number before the search: a process that publishes after the search then takes this very number.
        version = next_version(repository, draft.name)
        known = find(repository, draft.name, draft.fingerprint)
        if isinstance(known, type(draft)):
            return known
        numbered = draft.model_copy(update={"version": version})
        _write(draft_folder / manifest.FILE_NAME, numbered.model_dump_json(indent=2).encode())
        _sync_folder(draft_folder)
        try:
            draft_folder.rename(folder / str(version))
        except OSError:
            if not (folder / str(version)).exists():
                raise
            continue  # another process took the number
        _sync_folder(folder)
        return numbered


def newest_first(folder: Path) -> Iterator[Manifest]:
    """Yield the readable manifests of a model's versions."""
    return (known for known in _entries(folder) if isinstance(known, Manifest))


def _entries(folder: Path) -> Iterator[Entry]:
    for version in reversed(_versions(folder)):
        with suppress(ManifestError):
            yield manifest.read_entry(folder / str(version))


def _versions(folder: Path) -> list[int]:
    """List the numbers of a model's versions; [] if there is no such model.

    Raises:
        RepositoryError: the folder cannot be read.
    """
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RepositoryError(f"{folder}: {error.strerror}") from error
    return sorted(int(name) for name in names if name.isdecimal() and not name.startswith("0"))


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
