"""The files in a zip: their names, sizes and bytes. Nothing is written to disk, so hostile names do no harm."""

import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import NamedTuple

from server.errors import Code, ServiceError

MAX_ENTRIES = 1000
"""Most entries in one zip, folders included: each costs some microseconds and a kilobyte before it can be skipped."""
_START = (b"PK\x03\x04", b"PK\x05\x06")
_ENTRY = b"PK\x01\x02"
_UNREAD = (
    (0, b"\x1f\x8b", "gzip"),
    (0, b"BZh", "bzip2"),
    (0, b"\xfd7zXZ", "xz"),
    (0, b"7z\xbc\xaf", "7z"),
    (0, b"Rar!", "RAR"),
    (257, b"ustar", "tar"),
)
"""Archives and compressions that are not read: offset, magic bytes, name."""


class File(NamedTuple):
    """One file of an upload."""

    name: str
    size: int
    """in bytes; `read` gives no more"""
    read: Callable[[], bytes]
    """Raises ServiceError, INVALID_REQUEST, if this file alone cannot be read."""

    @classmethod
    def of(cls, name: str, content: bytes) -> "File":
        """A file already in memory."""
        return cls(printable(name), len(content), lambda: content)


def is_zip(content: bytes) -> bool:
    """Whether the content begins as a zip does."""
    return content.startswith(_START)


def files(archive: bytes) -> list[File]:
    """The files that a zip's directory lists, in its order; nothing is decompressed yet.

    Folders are left out, and so are the files that macOS, Windows, KDE and Synology add.

    Raises:
        ServiceError: INVALID_REQUEST, it is not a zip, or cannot be read to its end.
    """
    if not is_zip(archive):
        known = next((name for at, magic, name in _UNREAD if archive.startswith(magic, at)), None)
        what = f"{known} archives are not read" if known else "the body is neither a zip nor a form"
        raise ServiceError(Code.INVALID_REQUEST, f"{what}: send a zip, or each image as a file of a form")
    # A chance hit within compressed bytes is rarer than once in 4 billion bytes.
    if archive.count(_ENTRY) > MAX_ENTRIES:
        raise ServiceError(Code.INVALID_REQUEST, f"the zip has more than {MAX_ENTRIES} entries")
    with _readable():
        opened = zipfile.ZipFile(BytesIO(archive))
        return [
            File(printable(entry.filename), entry.file_size, partial(_unzipped, opened, entry))
            for entry in opened.infolist()
            if not (entry.is_dir() or _is_added(entry.filename))
        ]


def _is_added(name: str) -> bool:
    """Whether a desktop system added this file to the zip, not its user."""
    *folders, last = name.split("/")
    return (
        "__MACOSX" in folders[:1]
        or "@eaDir" in folders
        or last.startswith("._")
        or last.lower() in (".ds_store", ".directory", "thumbs.db", "ehthumbs.db", "desktop.ini")
    )


def printable(name: str) -> str:
    """The name with `?` in place of what UTF-8, and so JSON, cannot represent."""
    return name.encode("utf-8", "replace").decode()


def _unzipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.flag_bits & 1:
        raise ServiceError(Code.INVALID_REQUEST, "the file is encrypted; send it as it is")
    # With other methods zipfile decompresses everything, however little is asked for.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ServiceError(Code.INVALID_REQUEST, "the file is neither stored nor deflated; compress it with deflate")
    with _readable(), archive.open(entry) as opened:
        content = opened.read(entry.file_size)
        opened.read(1)  # zipfile compares the checksum at the end
        return content


@contextmanager
def _readable() -> Generator[None]:
    try:
        yield
    except Exception as error:  # on hostile bytes the library may raise anything
        detail = f"the zip cannot be read: {error or type(error).__name__}"
        raise ServiceError(Code.INVALID_REQUEST, detail) from None
