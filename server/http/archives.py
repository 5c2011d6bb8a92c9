"""The files in a zip or a tar: their names, sizes and bytes. Nothing is ever written, so a name is only a name."""

import tarfile
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import NamedTuple

from server.errors import Code, ServiceError

MAX_ENTRIES = 1000
"""In one archive, folders included: each costs some microseconds and a kilobyte before it can be skipped."""
GZIP = b"\x1f\x8b"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_ENTRY = b"PK\x01\x02"
_BLOCK_BYTES = 512
"""Of a tar."""


class File(NamedTuple):
    """One file of an upload."""

    name: str
    size: int
    """in bytes; `read` gives no more"""
    read: Callable[[], bytes]
    """Raises ServiceError, INVALID_REQUEST, where only this file is at fault."""

    @classmethod
    def of(cls, name: str, content: bytes) -> "File":
        """A file that is in memory."""
        return cls(printable(name), len(content), lambda: content)


def files(archive: bytes) -> list[File]:
    """What a zip or a tar says that it holds, in its order, without folders; nothing is decompressed yet.

    Raises:
        ServiceError: INVALID_REQUEST where it cannot be read to its end, or is neither.
    """
    if archive.startswith(_ZIP):
        # A chance hit within compressed bytes is rarer than once in 4 billion bytes.
        if archive.count(_ZIP_ENTRY) > MAX_ENTRIES:
            raise _too_many()
        with _readable("zip"):
            opened = zipfile.ZipFile(BytesIO(archive))
            return [
                File(printable(entry.filename), entry.file_size, partial(_unzipped, opened, entry))
                for entry in opened.infolist()
                if not entry.is_dir()
            ]
    with _readable("tar"):
        return _files_of_tar(archive)


def printable(name: str) -> str:
    """The same, where every byte was part of a character; JSON has no way to say the others."""
    return name.encode("utf-8", "replace").decode()


def _unzipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.flag_bits & 1:
        raise ServiceError(Code.INVALID_REQUEST, "the file is encrypted; send it as it is")
    # The others decompress as much as there is, however little was asked for.
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ServiceError(Code.INVALID_REQUEST, "the file is neither stored nor deflated; compress it with deflate")
    with _readable("zip"), archive.open(entry) as opened:
        content = opened.read(entry.file_size)
        opened.read(1)  # at its end the checksum is compared
        return content


def _files_of_tar(archive: bytes) -> list[File]:
    found = []
    with tarfile.open(fileobj=BytesIO(archive), mode="r:", errors="replace") as opened:
        for count, entry in enumerate(opened, start=1):
            if count > MAX_ENTRIES:
                raise _too_many()
            if entry.isdir():
                continue
            if not entry.isreg() or entry.issparse():
                found.append(File(printable(entry.name), 0, _no_plain_file))
                continue
            content = archive[entry.offset_data : entry.offset_data + entry.size]
            if len(content) != entry.size:
                raise ServiceError(Code.INVALID_REQUEST, "the tar ends early")
            found.append(File.of(entry.name, content))
        if archive[opened.offset : opened.offset + _BLOCK_BYTES].strip(b"\0"):
            raise ServiceError(Code.INVALID_REQUEST, f"the tar cannot be read on from byte {opened.offset}")
    return found


def _no_plain_file() -> bytes:
    raise ServiceError(Code.INVALID_REQUEST, "this is no plain file, but a link or the like")


def _too_many() -> ServiceError:
    return ServiceError(Code.INVALID_REQUEST, f"the archive has more than {MAX_ENTRIES} entries")


@contextmanager
def _readable(kind: str) -> Generator[None]:
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:  # of hostile bytes these libraries raise whatever comes
        detail = f"this cannot be read as a {kind}: {error or type(error).__name__}"
        raise ServiceError(Code.INVALID_REQUEST, detail) from None
