"""The model repository on disk: `<name>/<version>/` with the model file and its manifest.

A version appears whole or not at all: it is written beside its place and renamed into it.
"""

import os
import shutil
from pathlib import Path
from uuid import uuid4

from models import manifest
from models.errors import ExpectedError
from models.manifest import Manifest, ManifestError


class RepositoryError(ExpectedError):
    """The repository cannot be written."""


def find(repository: Path, name: str, fingerprint: str) -> Manifest | None:
    """Return the version of a model that has this fingerprint; a version whose manifest is broken has none."""
    for version in reversed(_versions(repository / name)):
        try:
            known = manifest.read(repository / name / str(version))
        except ManifestError:
            continue
        if known.fingerprint == fingerprint:
            return known
    return None


def publish(repository: Path, draft: Manifest, model: bytes) -> Manifest:
    """Add a model under the next free version number, whatever number the draft has.

    Where another process has published the same fingerprint meanwhile, that version is returned and nothing is added.

    Raises:
        RepositoryError: the folder cannot be written.
    """
    folder = repository / draft.name
    # A leading dot hides the folder from readers of the repository; the same file system makes the rename atomic.
    draft_folder = folder / f".draft-{uuid4().hex}"
    try:
        draft_folder.mkdir(parents=True)
        try:
            _write(draft_folder / draft.file.name, model)
            return _claim(repository, draft_folder, draft)
        finally:
            shutil.rmtree(draft_folder, ignore_errors=True)
    except OSError as error:
        raise RepositoryError(f"{folder} cannot be written: {error.strerror}") from error


def _claim(repository: Path, draft_folder: Path, draft: Manifest) -> Manifest:
    folder = draft_folder.parent
    while True:
        # The number is chosen before the search: whoever publishes after the search takes this number from us.
        version = max(_versions(folder), default=0) + 1
        if known := find(repository, draft.name, draft.fingerprint):
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


def _versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.glob("[1-9]*") if path.name.isdecimal())


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
