"""The files in a zip or a tar: their names, sizes and bytes. Nothing is ever written, so a name is only a name."""

import zipfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import NamedTuple

from server.errors import Code, ServiceError

MAX_ENTRIES = 1000
"""In one archive, folders included: each costs some microseconds and a kilobyte before it can be skipped."""
MAX_HEADERS = 4 * MAX_ENTRIES
"""Of a tar, where an entry may have several."""
MAX_EXTENDED_BYTES = 2**20
"""Of all headers of a tar that only describe the next entry: its long name, its attributes."""
GZIP = b"\x1f\x8b"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_ENTRY = b"PK\x01\x02"
_BLOCK_BYTES = 512
"""Of a tar."""
_CHECKSUM = slice(148, 156)
_PLAIN = b"0", b"\0", b"7"
_FOLDER = b"5"
_WITHOUT_CONTENT = b"1", b"2", b"3", b"4", _FOLDER, b"6"
"""Links, devices, folders and pipes, whatever size they state."""


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
    """In one pass that only goes forward: the standard library's can be led back, and into quadratic searches."""
    found: list[File] = []
    extended: dict[bytes, bytes] = {}  # what headers of their own say of the next entry
    at = entries = extended_bytes = 0
    for _ in range(MAX_HEADERS):
        header = archive[at : at + _BLOCK_BYTES]
        if not (header.strip(b"\0") or extended):
            return found
        if not _is_header(header):
            raise _broken_tar(f"cannot be read on from byte {at}")
        kind = header[156:157]
        size = int(extended[b"size"]) if b"size" in extended else _number(header[124:136])
        if kind in _WITHOUT_CONTENT:
            size = 0
        at += _BLOCK_BYTES
        content = archive[at : at + size]
        if len(content) != size:
            raise _broken_tar("ends early")
        at += -(-size // _BLOCK_BYTES) * _BLOCK_BYTES
        if kind in _EXTENSIONS:
            extended_bytes += size
            if extended_bytes > MAX_EXTENDED_BYTES:
                raise _broken_tar(f"has more than {MAX_EXTENDED_BYTES} bytes of attributes")
            extended |= _EXTENSIONS[kind](content)
            continue
        entries += 1
        if entries > MAX_ENTRIES:
            break
        name = extended.get(b"path", _name(header)).decode(errors="replace")
        if kind != _FOLDER and not (kind == b"\0" and name.endswith("/")):
            plain = kind in _PLAIN and not any(key.startswith(b"GNU.sparse.") for key in extended)
            found.append(File.of(name, content) if plain else File(printable(name), 0, _no_plain_file))
        extended = {}
    raise _too_many()


def _is_header(block: bytes) -> bool:
    checksum = block[_CHECKSUM]
    try:
        return len(block) == _BLOCK_BYTES and _number(checksum) == sum(block) - sum(checksum) + 8 * ord(" ")
    except ValueError:
        return False


def _number(field: bytes) -> int:
    """Octal, or GNU's base 256 where the first bit is set; that can be negative, which nothing here is.

    Raises:
        ValueError: it is neither.
    """
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)


def _name(header: bytes) -> bytes:
    """Of POSIX's ustar with the folders before it."""
    name, prefix = (field.partition(b"\0")[0] for field in (header[:100], header[345:500]))
    return b"%b/%b" % (prefix, name) if header[257:263] == b"ustar\0" and prefix else name


def _pax(content: bytes) -> dict[bytes, bytes]:
    """Records such as "16 path=cat.jpg", whose length counts itself and the line's end."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        digits, _, _ = content[at : at + 10].partition(b" ")
        record = content[at : at + int(digits)]
        if not record.endswith(b"\n"):
            raise _broken_tar("has attributes that cannot be read")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        found[key] = value
        at += len(record)
    return found


_EXTENSIONS: Mapping[bytes, Callable[[bytes], dict[bytes, bytes]]] = {
    b"x": _pax,
    b"g": lambda _: {},  # of all entries that follow: no names, no sizes
    b"L": lambda content: {b"path": content.rstrip(b"\0")},  # GNU's long names
    b"K": lambda _: {},  # of a link's target
}
"""By kind of header."""


def _broken_tar(what: str) -> ServiceError:
    return ServiceError(Code.INVALID_REQUEST, f"the tar {what}")


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
