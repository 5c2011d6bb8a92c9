"""Archives as anybody may send them: in order, within bounds, and whatever is wrong has a code."""

import io
import stat
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.errors import Code, ServiceError
from server.http import archives

Members = Sequence[tuple[str, bytes]]


def zipped(members: Members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return stream.getvalue()


def tarred(members: Members, form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


PACKERS = [
    pytest.param(zipped, id="zip"),
    pytest.param(lambda members: zipped(members, zipfile.ZIP_STORED), id="stored zip"),
    pytest.param(tarred, id="tar"),
    pytest.param(lambda members: tarred(members, tarfile.GNU_FORMAT), id="GNU tar"),
    pytest.param(lambda members: tarred(members, tarfile.USTAR_FORMAT), id="POSIX tar of 1988"),
]


def read(archive: bytes) -> list[tuple[str, bytes | Code]]:
    """Each file with its bytes, or the code of its own problem."""
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


def test_folders_are_skipped_and_links_are_a_problem_of_their_own() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, kind in [("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE), ("pipe", tarfile.FIFOTYPE)]:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("file"), io.BytesIO())
    assert read(stream.getvalue()) == [
        ("link", Code.INVALID_REQUEST),
        ("pipe", Code.INVALID_REQUEST),
        ("file", b""),
    ]
    assert read(zipped([("folder/", b""), ("folder/file", b"1")])) == [("folder/file", b"1")]


def test_an_archive_in_an_archive_is_a_file_like_any_other() -> None:
    inner = zipped([("a", b"1")])
    assert read(zipped([("inner.zip", inner)])) == [("inner.zip", inner)]
    assert read(tarred([("inner.zip", inner)])) == [("inner.zip", inner)]


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
    assert file.size == claimed  # the upload is refused for it, where it is too much
    assert read(bytes(archive)) == [("a", outcome)]


def test_a_tar_that_claims_more_than_it_has_ends_early() -> None:
    stream = io.BytesIO()
    entry = tarfile.TarInfo("a")
    entry.size = 2**40
    stream.write(entry.tobuf())
    assert refused(stream.getvalue() + b"A" * 1024) is Code.INVALID_REQUEST


def test_a_sparse_file_is_not_filled_up() -> None:
    entry = tarfile.TarInfo("a")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"777777777777"  # the size once filled up
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    assert read(bytes(header) + bytes(1024)) == [("a", Code.INVALID_REQUEST)]


def test_rubbish_between_files_is_no_end() -> None:
    first, second = tarred([("a", b"1")])[:1024], tarred([("b", b"2")])
    assert refused(first + b"rubbish".ljust(512) + second) is Code.INVALID_REQUEST


@pytest.mark.parametrize("pack", PACKERS)
def test_many_entries_are_refused_before_they_cost_much(pack: Callable[[Members], bytes]) -> None:
    assert refused(pack([(str(n), b"") for n in range(archives.MAX_ENTRIES + 1)])) is Code.INVALID_REQUEST


def test_headers_upon_headers_end_in_an_error() -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 0
    assert refused(info.tobuf() * 5000) is Code.INVALID_REQUEST


def attributes(content: bytes) -> bytes:
    """A header of such, as of the entry that follows it."""
    header = tarfile.TarInfo("attributes")
    header.type, header.size = tarfile.XHDTYPE, len(content)
    return header.tobuf() + content + bytes(-len(content) % 512)


def record(key: str, value: str) -> bytes:
    size = next(size for size in range(5, 2**21) if len(f"{size} {key}={value}\n") == size)
    return f"{size} {key}={value}\n".encode()


def test_attributes_are_looked_at_once_and_never_searched() -> None:
    for content in (b"1" * 500_000, b"1 " * 250_000, b"0 " * 250_000, b"-9 a=b\n"):
        assert refused(attributes(content) + tarred([("a", b"1")])) is Code.INVALID_REQUEST


def test_attributes_within_bounds_do_not_matter() -> None:
    some = attributes(record("SCHILY.xattr.user.much", "x" * 100_000) + record("mtime", "1.5") + record("path", "new"))
    assert read(some + tarred([("a", b"1"), ("b", b"2")])) == [("new", b"1"), ("b", b"2")]
    assert refused(some * 11 + tarred([("a", b"1")])) is Code.INVALID_REQUEST


def test_a_size_in_the_attributes_holds() -> None:
    entry = tarred([("a", b"12345")])
    assert read(attributes(record("size", "3")) + entry) == [("a", b"123")]
    for size in ("6000000", "-1", "1" * 5000, "x"):
        assert refused(attributes(record("size", size)) + entry[:1024]) is Code.INVALID_REQUEST


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"9"])
def test_a_negative_size_does_not_lead_back(kind: bytes) -> None:
    header = bytearray(tarfile.TarInfo("a").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + (-1024).to_bytes(2, "big", signed=True)  # base 256
    header[148:157] = b" " * 8 + kind
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    assert refused(bytes(header) * 8) is Code.INVALID_REQUEST


def test_a_unix_mode_makes_no_link_of_a_zipped_file() -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        entry = zipfile.ZipInfo("link")
        entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    assert read(stream.getvalue()) == [("link", b"/etc/passwd")]


def test_a_name_in_no_encoding_is_shown_as_well_as_can_be() -> None:
    entry = tarfile.TarInfo("x")
    header = bytearray(entry.tobuf(tarfile.USTAR_FORMAT))
    header[0:3] = b"\xffab"
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    ((name, _),) = read(bytes(header) + bytes(1024))
    assert name.encode().endswith(b"ab")
