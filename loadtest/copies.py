"""Copies of a model under different names, for servers with many models."""

import json
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from loadtest.command import LoadTestError

MANIFEST = "manifest.json"


@contextmanager
def made(repository: Path, name: str | None, count: int) -> Generator[tuple[Path, list[str]]]:
    """A temporary repository with `count` copies of a model, and their names; all link to the same model file.

    `name` may be None if the repository has only one model.

    Raises:
        LoadTestError: there is no such model, or there are several.
    """
    folders = [path.parent.resolve() for path in repository.glob(f"{name or '*'}/[1-9]*/{MANIFEST}")]
    if len({folder.parent for folder in folders}) != 1:
        raise LoadTestError(f"{repository}: name the model that is to be copied by --model")
    original = max(folders, key=lambda folder: int(folder.name))
    manifest = json.loads((original / MANIFEST).read_text())
    with tempfile.TemporaryDirectory() as folder:
        names = [f"copy{number}" for number in range(count)]
        for copy in names:
            version = Path(folder) / copy / original.name
            version.mkdir(parents=True)
            (version / manifest["file"]["name"]).symlink_to(original / manifest["file"]["name"])
            (version / MANIFEST).write_text(json.dumps(manifest | {"name": copy}))
        yield Path(folder), names
