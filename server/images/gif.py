"""GIF: removes the extensions before the first picture, most of which do not affect it (GIF89a specification)."""

from server.images.bounds import MAX_READS, bound

_EXTENSION, _PICTURE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = 0xF9
_HEAD_BYTES, _CONTROL_BYTES = 13, 8


def without_metadata(data: bytes) -> bytes:
    """The file without extensions before the first picture, except the picture's own graphic control extension.

    Pillow reads past the end of an empty extension.

    Raises:
        ServiceError: BROKEN_IMAGE, there are too many parts before the picture.
        IndexError: the file ends before the picture.
    """
    flags = data[10]
    start = at = _HEAD_BYTES + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
    control, reads = b"", 0
    while (kind := data[at]) not in (_PICTURE, _TRAILER):
        reads += 1
        bound(reads, MAX_READS, "the image has {} parts")
        at += 1
        if kind != _EXTENSION:
            continue
        label, at = data[at], at + 1
        block = at
        while size := data[at]:
            at += 1 + size
            reads += 2
            bound(reads, MAX_READS, "the image has {} parts")
        at += 1
        if label == _GRAPHIC_CONTROL and data[block] >= 4:
            control = b"!\xf9\4" + data[block + 1 : block + 5] + b"\0"
    return data[:start] + control + data[at:]


def has_palette(data: bytes) -> bool:
    """Whether the first picture of a file `without_metadata` has a palette; without one, Pillow takes it for grey.

    Raises:
        IndexError: the file ends before the picture.
    """
    if data[10] & 0x80:
        return True
    picture = _HEAD_BYTES + (_CONTROL_BYTES if data[_HEAD_BYTES] == _EXTENSION else 0)
    return bool(data[picture + 9] & 0x80)
