"""AVIF and HEIF: images in the boxes of the ISO base media file format (ISO/IEC 14496-12, 23008-12)."""

from collections.abc import Iterator

from server.images.bounds import bound

_MAX_BOXES = 1000
_BOX_HEAD_BYTES = 8
_MAX_INDEX_BYTES = 2**17
"""An item takes some 50 bytes; a picture has a few items, a large one has one for each tile of its grid."""
_CODECS = {
    b"hvc1": "HEVC",
    b"av01": "AV1",
    b"avc1": "AVC (H.264)",
    b"vvc1": "VVC (H.266)",
    b"evc1": "EVC",
    b"jpeg": "JPEG",
    b"j2k1": "JPEG 2000",
    b"unci": "uncompressed samples",
}
"""Item types of pictures, with the names of their codecs."""
_DECODED = {"AVIF": b"av01", "HEIF": b"hvc1"}


def check(data: bytes, format_name: str) -> None:
    """Refuse an AVIF or HEIF file with too many items: the libraries search all of them for each one.

    Raises:
        ServiceError: BROKEN_IMAGE.
    """
    index_bytes = 0
    for kind, start, end in _boxes(data, 0, len(data)):
        if kind != b"meta":
            continue
        for inner, inner_start, inner_end in _boxes(data, start + 4, end):
            if inner == b"iprp":  # all but the properties themselves, among them colour profiles
                properties = _boxes(data, inner_start, inner_end)
                index_bytes += sum(stop - begin for name, begin, stop in properties if name != b"ipco")
            elif inner != b"idat":
                index_bytes += inner_end - inner_start
    bound(index_bytes, _MAX_INDEX_BYTES, f"the {format_name} image has {{}} bytes of item index")


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of the content of each box (ISO/IEC 14496-12, 4.2)."""
    found = 0
    while at + 8 <= end:
        found += 1
        bound(found, _MAX_BOXES, "the image has {} boxes")
        size, start = int.from_bytes(data[at : at + 4], "big"), at + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        stop = min(end, at + size) if size else end
        yield data[at + 4 : at + 8], start, max(start, stop)
        at = max(start, stop)


def length(data: bytes) -> int:
    """Length of the file in bytes, according to its boxes."""
    at = 0
    for _ in range(_MAX_BOXES):
        size = int.from_bytes(data[at : at + 4], "big")
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if at + size > len(data):
            return at + size if data[at + 4 : at + 8] in (b"meta", b"mdat") else at  # otherwise junk after the boxes
        if size < _BOX_HEAD_BYTES:  # the last box extends to the end of the file
            break
        at += size
    return len(data)


def variant(data: bytes, format_name: str) -> str | None:
    """Description of a file whose pictures need an unsupported codec; None: they do not."""
    found = {kind: (start, end) for kind, start, end in _boxes(data, 0, len(data))}
    if b"meta" not in found:
        return "a video or an image sequence without a still image" if b"moov" in found else None
    start, end = found[b"meta"]
    items = next((data[begin:stop] for kind, begin, stop in _boxes(data, start + 4, end) if kind == b"iinf"), b"")
    if _DECODED[format_name] in items:
        return None
    return next((f"{format_name} of {name}" for kind, name in _CODECS.items() if kind in items), None)
