"""Files in folders of a bounded size: how they get onto a machine without a network, and are put together there.

A bundle's folders are `1`, `2`, …, each with a list of what is in it. A file that does not fit is cut into pieces,
which lie in several. Needs nothing but Python.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

LIST = "list.json"
_BLOCK = 2**20


class BundleError(Exception):
    """A file of a bundle is not what its list says."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A file, or a part of one."""

    file: str
    """Relative to where the bundle is unpacked."""
    size_bytes: int
    """of the whole file"""
    sha256: str
    """of the whole file"""
    start: int
    end: int
    """The piece is bytes `start` to `end` of the file."""
    stored_as: str
    """Relative to the bundle's folder."""


def plan(sizes: Iterable[tuple[str, int]], room: int) -> Iterator[list[tuple[str, int, int]]]:
    """Distribute files over folders in their order, all but the last full: lists of (file, start, end) for each."""
    folder: list[tuple[str, int, int]] = []
    left = room
    for file, size in sizes:
        start = 0
        while size - start > left:
            folder.append((file, start, start + left))
            yield folder
            start, folder, left = start + left, [], room
        folder.append((file, start, size))
        left -= size - start
    yield folder


def write(root: Path, files: Iterable[tuple[str, Path]], room: int) -> list[Path]:
    """Write a bundle of (name in it, where it is now) to `root`, in place of an older one; its folders."""
    sources = dict(files)
    digests = {name: sha256_of(path) for name, path in sources.items()}
    sizes = {name: path.stat().st_size for name, path in sources.items()}
    for old in folders(root):
        shutil.rmtree(old)
    written = []
    for number, pieces in enumerate(plan(sizes.items(), room), 1):
        folder = root / str(number)
        folder.mkdir(parents=True)
        listed = []
        for at, (name, start, end) in enumerate(pieces):
            stored_as = f"{at:04}.piece"
            with sources[name].open("rb") as source, (folder / stored_as).open("wb") as target:
                source.seek(start)
                _copy(source, target, end - start)
            listed.append(Piece(name, sizes[name], digests[name], start, end, stored_as))
        (folder / LIST).write_text(json.dumps([asdict(piece) for piece in listed], indent=1) + "\n")
        written.append(folder)
    return written


def folders(root: Path) -> list[Path]:
    """The folders of a bundle that are there, by number."""
    return sorted((path.parent for path in root.glob(f"*/{LIST}")), key=lambda path: int(path.name))


def unpack(root: Path, target: Path) -> tuple[list[Path], list[str]]:
    """Put together what can be from the folders that are there: all whole files in `target`, and what is damaged.

    Pieces are written where they belong in `<file>.part`, and a file gets its name once all of it is there and has the
    right digest: folders may come one by one, and be gone when the next comes.
    What is damaged is removed, so that its folders can be brought again.
    """
    damaged = []
    for folder in folders(root):
        for piece in json.loads((folder / LIST).read_text()):
            try:
                _place(folder, Piece(**piece), target)
            except (BundleError, OSError) as error:
                damaged.append(str(error))
    whole = (path for path in target.rglob("*") if path.is_file() and path.suffix not in (".part", ".have"))
    return sorted(whole), damaged


def sha256_of(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _place(folder: Path, piece: Piece, target: Path) -> None:
    whole = target / piece.file
    if whole.exists():
        return
    growing, having = whole.with_name(f"{whole.name}.part"), whole.with_name(f"{whole.name}.have")
    have: dict[str, int] = json.loads(having.read_text()) if having.exists() else {}
    if str(piece.start) not in have:
        growing.parent.mkdir(parents=True, exist_ok=True)
        growing.touch()
        with (folder / piece.stored_as).open("rb") as source, growing.open("r+b") as file:
            file.seek(piece.start)
            _copy(source, file, piece.end - piece.start)
        have[str(piece.start)] = piece.end - piece.start
        having.write_text(json.dumps(have))
    if sum(have.values()) < piece.size_bytes:
        return
    having.unlink()
    if sha256_of(growing) != piece.sha256:
        growing.unlink()
        raise BundleError(f"{piece.file} has another digest than its bundle says: bring all its folders again")
    growing.rename(whole)


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    while size:
        block = source.read(min(size, _BLOCK))
        if not block:
            raise BundleError("a piece ends early: bring its folder again")
        target.write(block)
        size -= len(block)
