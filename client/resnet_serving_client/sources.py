"""The images that a user names: files, folders, patterns, addresses, standard input."""

import asyncio
import sys
from collections.abc import Iterator
from glob import glob
from pathlib import Path

import httpx

SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
"""Suffixes of the files taken from a folder; a file that is named itself is sent whatever its suffix."""
MAX_BYTES = 256 * 2**20
"""Larger files are not read: no service accepts them."""
STDIN = "-"
LARGEST_PORT = 65535


class SourceError(Exception):
    """An image cannot be read or downloaded; the message says why."""


def expand(name: str) -> Iterator[str]:
    """The single images that a name stands for, in order; the name itself if there are none."""
    try:
        found = _found(name)
    except OSError:  # the name is too long, for one: reading it says why
        found = []
    yield from found or [name]


def _found(name: str) -> list[str]:
    path = Path(name)
    if name == STDIN or _is_address(name) or path.is_file():
        return []
    if path.is_dir():
        return sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    matches = sorted(glob(name, recursive=True))  # noqa: PTH207
    # A pipe or a dangling link matches its own name.
    return [image for match in matches if match != name for image in expand(match)]


async def read(name: str, web: httpx.AsyncClient) -> bytes:
    """The bytes of one image.

    Raises:
        SourceError: it does not exist, cannot be read, or has more than MAX_BYTES.
    """
    try:
        image = await (_download(name, web) if _is_address(name) else asyncio.to_thread(_read, name))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceError(f"cannot be downloaded: {error or type(error).__name__}") from None
    except IsADirectoryError:
        raise SourceError("a folder without images") from None
    except OSError as error:
        raise SourceError(error.strerror or str(error)) from None
    if len(image) > MAX_BYTES:
        raise SourceError(f"more than {MAX_BYTES} bytes")
    return image


def _is_address(name: str) -> bool:
    return name.startswith(("http://", "https://"))


def _read(name: str) -> bytes:
    if name == STDIN:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    with Path(name).open("rb") as file:
        return file.read(MAX_BYTES + 1)


async def _download(address: str, web: httpx.AsyncClient) -> bytes:
    if (httpx.URL(address).port or 0) > LARGEST_PORT:
        raise SourceError(f"cannot be downloaded: ports end at {LARGEST_PORT}")
    content = bytearray()
    async with web.stream("GET", address, follow_redirects=True) as response:
        if not response.is_success:
            raise SourceError(f"cannot be downloaded: {response.status_code} {response.reason_phrase}")
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_BYTES:
                break
    return bytes(content)
