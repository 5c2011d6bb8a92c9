"""Real images to begin with: small, in every format and every variant that is decoded by different code."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageOps

from server.images.decode import FORMATS


def seeds(side: int = 24) -> dict[str, bytes]:
    """The files by name: each a crop of a photo, about a kilobyte."""
    pillow_heif.register_heif_opener()  # to write it
    with Image.open("export/photos/cat.jpg") as photo:
        cut = ImageOps.fit(photo.convert("RGB"), (side, side))
    see_through = cut.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(cut.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {name: _encoded(cut, name) for name in FORMATS}
    ways: dict[str, Callable[[], bytes]] = {
        "JPEG-progressive": lambda: _encoded(cut, "JPEG", progressive=True, exif=exif),
        "JPEG-grey": lambda: _encoded(cut.convert("L"), "JPEG"),
        "JPEG-cmyk": lambda: _encoded(cut.convert("CMYK"), "JPEG"),
        "PNG-alpha": lambda: _encoded(see_through, "PNG", exif=exif),
        "PNG-palette": lambda: _encoded(cut.quantize(16), "PNG", transparency=3),
        "PNG-16": lambda: _encoded(Image.fromarray(np.asarray(cut.convert("L")).astype("<u2") * 257), "PNG"),
        "PNG-animated": lambda: _encoded(cut, "PNG", save_all=True, append_images=[see_through.convert("RGB")]),
        "WEBP-lossless": lambda: _encoded(see_through, "WEBP", lossless=True, exif=exif),
        "WEBP-animated": lambda: _encoded(cut, "WEBP", save_all=True, append_images=[ImageOps.invert(cut)]),
        "GIF-animated": lambda: _encoded(cut, "GIF", save_all=True, append_images=[ImageOps.invert(cut)]),
        "BMP-palette": lambda: _encoded(cut.quantize(16), "BMP"),
        "TIFF-lzw": lambda: _encoded(cut, "TIFF", compression="tiff_lzw"),
        "TIFF-jpeg": lambda: _encoded(cut, "TIFF", compression="jpeg"),
        "TIFF-fax": lambda: _encoded(cut.convert("1"), "TIFF", compression="group4"),
        "TIFF-deflate": lambda: _encoded(see_through, "TIFF", compression="tiff_adobe_deflate"),
        "TIFF-palette": lambda: _encoded(cut.quantize(16), "TIFF"),
        "TIFF-16": lambda: _encoded(Image.fromarray(np.asarray(cut.convert("L")).astype("<u2") * 257), "TIFF"),
        "TIFF-float": lambda: _encoded(cut.convert("F"), "TIFF"),
        "HEIF-alpha": lambda: _encoded(see_through, "HEIF", exif=exif),
        "AVIF-alpha": lambda: _encoded(see_through, "AVIF", exif=exif),
    }
    return found | {name: make() for name, make in ways.items()}


def _encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format_name, **options)
    return stream.getvalue()
