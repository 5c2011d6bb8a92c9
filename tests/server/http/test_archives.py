"""Zips as clients may send them: files come in order and within bounds, and every fault has a code."""

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.errors import Code, ServiceError
from server.http import archives
from tests.server.http.packing import Members, tarred, zipped

PACKERS = [
    pytest.param(zipped, id="deflated"),
    pytest.param(lambda members: zipped(members, zipfile.ZIP_STORED), id="stored"),
]


def read(archive: bytes) -> list[tuple[str, bytes | Code]]:
    """Each file with its bytes or the code of its problem."""
    found: list[tuple[str, bytes | Code]] = []
    for file in archives.files(archive):
        try:
            content = file.read()
            assert len(content) <= file.size
            found.append((file.name, content))
        except ServiceError as error:
            found.append((file.name, error.code))
    return found


def refused(archive: bytes) -> Code:
    with pytest.raises(ServiceError) as error:
        archives.files(archive)
    return error.value.code


@pytest.mark.parametrize("pack", PACKERS)
def test_files_come_in_the_archives_order_and_names_are_only_names(pack: Callable[[Members], bytes]) -> None:
    members = [
        ("b.jpg", b"1"),
        ("../../etc/passwd", b"2"),
        ("/absolute", b"3"),
        ("b.jpg", b"4" * 5000),
        ("\u00e4 b", b""),
        ("long/" * 40 + "name.jpg", b"5"),
    ]
    assert read(pack(members)) == members


@pytest.mark.parametrize("pack", PACKERS)
@settings(deadline=None)
@given(
    members=st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=20),
            st.binary(max_size=2000),
        ),
        max_size=5,
    )
)
def test_whatever_is_packed_comes_out(pack: Callable[[Members], bytes], members: Members) -> None:
    assume(not {name for name, _ in members} & {".DS_Store", "Thumbs.db", "desktop.ini"})
    if members:
        assert read(pack(members)) == members


@pytest.mark.parametrize("pack", PACKERS)
@settings(deadline=None)
@given(cut=st.integers(1, 3000), flips=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8))
def test_a_damaged_archive_gives_files_or_an_error_with_a_code(
    pack: Callable[[Members], bytes], cut: int, flips: list[tuple[int, int]]
) -> None:
    archive = bytearray(pack([("a", b"A" * 700), ("b", b"B" * 10), ("c", b"C" * 600)]))
    for where, value in flips:
        archive[where % len(archive)] = value
    try:
        found = read(bytes(archive[: -(cut % len(archive))]))
    except ServiceError as error:
        code = error.code
        assert code is Code.INVALID_REQUEST
    else:
        assert {content for _, content in found if isinstance(content, Code)} <= {Code.INVALID_REQUEST}


@pytest.mark.parametrize("pack", PACKERS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9])
def test_a_truncated_archive_is_refused_as_a_whole(pack: Callable[[Members], bytes], share: float) -> None:
    archive = pack([(str(n), bytes([n]) * 20_000) for n in range(10)])
    assert refused(archive[: int(len(archive) * share)]) is Code.INVALID_REQUEST


@settings(deadline=None)
@given(st.binary(max_size=1500))
def test_no_bytes_whatever_make_more_than_files_or_an_error_with_a_code(content: bytes) -> None:
    for archive in (content, b"PK\x03\x04" + content, b"PK\x05\x06" + content):
        try:
            read(archive)
        except ServiceError as error:
            code = error.code
            assert code is Code.INVALID_REQUEST


def test_folders_are_skipped() -> None:
    assert read(zipped([("folder/", b""), ("folder/file", b"1")])) == [("folder/file", b"1")]


def test_what_a_desktop_adds_is_skipped() -> None:
    members = [
        ("photos/cat.jpg", b"1"),
        ("__MACOSX/photos/._cat.jpg", b"\0\x05\x16\x07"),
        ("__MACOSX/._photos", b"\0\x05\x16\x07"),
        ("photos/.DS_Store", b"\0\0\0\1Bud1"),
        (".DS_Store", b"\0\0\0\1Bud1"),
        ("photos/Thumbs.db", b"\xd0\xcf"),
        ("desktop.ini", b"[.ShellClassInfo]"),
        ("photos/._cat.jpg", b"\0\x05\x16\x07"),
        ("photos/THUMBS.DB", b"\xd0\xcf"),
        ("photos/.directory", b"[Dolphin]"),
        ("photos/@eaDir/cat.jpg/SYNOPHOTO_THUMB_M.jpg", b"4"),
        ("photos/__MACOSX", b"2"),
        ("photos/__MACOSX/dog.jpg", b"3"),
    ]
    assert read(zipped(members)) == [members[0], *members[-2:]]


def test_an_archive_in_an_archive_is_a_file_like_any_other() -> None:
    inner = zipped([("a", b"1")])
    assert read(zipped([("inner.zip", inner)])) == [("inner.zip", inner)]


def test_an_encrypted_file_is_its_own_problem() -> None:
    archive = bytearray(zipped([("secret", b"1" * 50), ("open", b"2")]))
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the general purpose flags
        archive[archive.index(signature) + offset] |= 1
    assert read(bytes(archive)) == [("secret", Code.INVALID_REQUEST), ("open", b"2")]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_decompressed_within_bounds_is_not_decompressed(method: int) -> None:
    assert read(zipped([("a", b"1" * 50)], method)) == [("a", Code.INVALID_REQUEST)]


def test_a_bad_checksum_is_that_files_problem() -> None:
    archive = bytearray(zipped([("a", b"A" * 50), ("b", b"B" * 50)], zipfile.ZIP_STORED))
    archive[archive.index(b"AAAA")] = 0
    assert read(bytes(archive)) == [("a", Code.INVALID_REQUEST), ("b", b"B" * 50)]


@pytest.mark.parametrize(("claimed", "outcome"), [(3, Code.INVALID_REQUEST), (2**32 - 2, b"A" * 50)])
def test_a_size_that_lies_yields_no_more_bytes(claimed: int, outcome: bytes | Code) -> None:
    archive = bytearray(zipped([("a", b"A" * 50)]))
    at = archive.index(b"PK\x01\x02") + 24
    archive[at : at + 4] = claimed.to_bytes(4, "little")
    (file,) = archives.files(bytes(archive))
    assert file.size == claimed  # if it is too large, the upload is refused
    assert read(bytes(archive)) == [("a", outcome)]


@pytest.mark.parametrize("pack", PACKERS)
def test_many_entries_are_refused_before_they_cost_much(pack: Callable[[Members], bytes]) -> None:
    assert refused(pack([(str(n), b"") for n in range(archives.MAX_ENTRIES + 1)])) is Code.INVALID_REQUEST


def test_a_unix_mode_makes_no_link_of_a_zipped_file() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert read(stream.getvalue()) == [("link", b"/etc/passwd")]


def test_a_name_in_no_encoding_is_shown_as_well_as_can_be() -> None:
    archive = zipped([("xab", b"1")]).replace(b"xab", b"\xffab")
    ((name, _),) = read(archive)
    assert name.encode().endswith(b"ab")


SOME = [("a.jpg", b"1"), ("b.jpg", b"2")]


@pytest.mark.parametrize(
    ("archive", "kind"),
    [
        (tarred(SOME), "tar archives"),
        (tarred(SOME, tarfile.GNU_FORMAT), "tar archives"),
        (tarred(SOME, tarfile.USTAR_FORMAT), "tar archives"),
        (gzip.compress(tarred(SOME)), "gzip archives"),
        (bz2.compress(tarred(SOME)), "bzip2 archives"),
        (lzma.compress(tarred(SOME)), "xz archives"),
        (b"7z\xbc\xaf\x27\x1c", "7z archives"),
        (b"Rar!\x1a\x07", "RAR archives"),
        (b"\xff\xd8\xff\xe0", "neither a zip nor a form"),
        (b"", "neither a zip nor a form"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_zip_is_named_and_told_what_to_send_instead(archive: bytes, kind: str) -> None:
    with pytest.raises(ServiceError, match=kind) as error:
        archives.files(archive)
    assert error.value.code is Code.INVALID_REQUEST
    assert error.value.detail.endswith("send a zip, or each image as a file of a form")
