"""How a stored picture is to be turned: by its EXIF data alone, as browsers do; XMP may say something else."""

import struct

from PIL import ExifTags, Image

EXIF_HEAD = b"Exif\0\0"


def orientation(exif: bytes | None) -> int:
    """EXIF orientation (CIPA DC-008, tag 0x0112), 1 to 8; 1 where there is none, or `exif` cannot be read."""
    if not exif:
        return 1
    try:
        found = Image.Exif()
        found.load(exif)
        value = int(found.get(ExifTags.Base.Orientation, 1))
    except Exception:  # malformed metadata is no reason to refuse a picture
        return 1
    return value if 1 <= value <= 8 else 1


def exif(value: int) -> bytes:
    """The shortest EXIF data, without its head, that says so."""
    return b"MM\0*" + struct.pack(">LHHHLHHL", 8, 1, ExifTags.Base.Orientation, 3, 1, value, 0, 0)
