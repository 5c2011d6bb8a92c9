"""Which images a name stands for, and which cannot be read."""

import asyncio
import os
from pathlib import Path

import httpx
import pytest

from resnet_serving_client import sources
from resnet_serving_client.sources import SourceError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images at two depths, and a file that is not one."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "deeper/c.webp", "deeper/d.jpg", "folder.jpg/e.gif", "x[1].jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (tmp_path / "empty").mkdir()
    return tmp_path


def names(folder: Path, name: str) -> list[str]:
    return [found.removeprefix(f"{folder}/") for found in sources.expand(f"{folder}/{name}")]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("deeper", ["deeper/c.webp", "deeper/d.jpg"]),
        ("", ["a.PNG", "b.jpg", "deeper/c.webp", "deeper/d.jpg", "folder.jpg/e.gif", "x[1].jpg"]),
        ("notes.txt", ["notes.txt"]),
        ("b*", ["b.jpg"]),
        ("**/*.jpg", ["b.jpg", "deeper/d.jpg", "folder.jpg/e.gif", "x[1].jpg"]),
        ("d*", ["deeper/c.webp", "deeper/d.jpg"]),
        ("x[1].jpg", ["x[1].jpg"]),
        ("none*", ["none*"]),
        ("empty", ["empty"]),
        ("n" * 300, ["n" * 300]),
    ],
)
def test_a_name_stands_for_images(folder: Path, name: str, found: list[str]) -> None:
    assert names(folder, name) == found


def test_a_pipe_and_a_link_to_nothing_stand_for_themselves(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "pointless.jpg").symlink_to("none")
    for name in ("pipe.jpg", "pointless.jpg"):
        assert names(folder, name) == [name]
    assert names(folder, "p*.jpg") == ["pipe.jpg", "pointless.jpg"]


@pytest.mark.parametrize("name", ["-", "http://127.0.0.1/*", "https://127.0.0.1/a.jpg"])
def test_what_is_no_path_stands_for_itself(name: str) -> None:
    assert list(sources.expand(name)) == [name]


def read(name: str) -> bytes:
    async def run() -> bytes:
        async with httpx.AsyncClient() as web:
            return await sources.read(name, web)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.jpg", "No such file"),
        ("none*", "No such file"),
        ("empty", "a folder without images"),
        ("b.jpg/c.jpg", "Not a directory"),
    ],
)
def test_what_cannot_be_read_is_told_of(folder: Path, name: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason):
        read(f"{folder}/{name}")


def test_no_more_than_the_limit_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch, web: str) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 4)
    for name in (f"{folder}/b.jpg", f"{web}/b.jpg"):
        with pytest.raises(SourceError, match="more than 4 bytes"):
            read(name)


@pytest.mark.usefixtures("folder")
def test_an_address_is_downloaded(web: str) -> None:
    assert read(f"{web}/b.jpg") == b"b.jpg"


@pytest.mark.parametrize("address", ["/none.jpg", ":1/b.jpg", "http://[/", "x", "0000/b.jpg"])
def test_what_cannot_be_downloaded_is_told_of_in_one_line(web: str, address: str) -> None:
    with pytest.raises(SourceError, match=r"\Acannot be downloaded.*\Z"):
        read(web + address)
