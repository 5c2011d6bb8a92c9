"""Detects a file's format by its first bytes: an accepted one, or another, which the refusal then names."""

import re
from collections.abc import Callable, Mapping

import pillow_heif
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from server.errors import Code, ServiceError

PLUGINS: Mapping[str, type[ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIF": pillow_heif.HeifImageFile,
}
"""The class that opens each accepted format, by Pillow's names, the most common first."""

FORMATS = tuple(PLUGINS)

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"mif2", b"msf1"}
"""Brands of HEVC, and those that do not fix the codec (ISO/IEC 23008-12)."""

_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\xff\xd8\xff\xf7", "JPEG-LS"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS\0\2", "a large Photoshop document (PSB)"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"PK\3\4", "a zip archive (which /classify/batch takes if it comes alone)"),
    (0, b"\x1f\x8b", "gzip (which a Content-Encoding field must name)"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"%!PS", "PostScript (EPS)"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript (EPS)"),
    (0, b"IIRO", "a camera's raw file (Olympus ORF)"),
    (0, b"IIRS", "a camera's raw file (Olympus ORF)"),
    (0, b"IIU\0", "a camera's raw file (Panasonic RW2)"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (Fujifilm RAF)"),
    (0, b"FOVb", "a camera's raw file (Sigma X3F)"),
    (0, b"\0MRM", "a camera's raw file (Minolta MRW)"),
    (6, b"HEAPCCDR", "a camera's raw file (Canon CRW)"),
    (0, b"\0\0\1\0", "an icon (ICO)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"gimp xcf", "a GIMP document (XCF)"),
    (0, b"qoif", "QOI"),
    (0, b"BPG\xfb", "BPG"),
    (0, b"FLIF", "FLIF"),
    (0, b"DDS ", "a DirectDraw surface (DDS)"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"#?RGBE", "Radiance HDR"),
    (0, b"SIMPLE  =", "FITS"),
    (128, b"DICM", "DICOM"),
    (0, b"\x8aMNG\r\n\x1a\n", "MNG"),
    (0, b"\x8bJNG\r\n\x1a\n", "JNG"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (40, b" EMF", "a Windows metafile (EMF)"),
    (0, b"farbfeld", "farbfeld"),
    (0, b"\x59\xa6\x6a\x95", "Sun raster"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (0, b"AT&TFORM", "DjVu"),
    (0, b"FORM", "IFF (ILBM)"),
)
_PATTERNS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb"P[1-7][\s#]"), "Netpbm (PBM, PGM, PPM or PAM)"),
    (re.compile(rb"P[Ff]\s"), "a portable float map (PFM)"),
    (re.compile(rb"\0\0\x02\0(?!\0\0)"), "a cursor (CUR)"),
    (re.compile(rb".(?:\0[\x02\x03\n\x0b]\0{5}|\x01[\x01\t].{5}).{8}[\x08\x0f\x10\x18 ]", re.S), "Targa (TGA)"),
    (re.compile(rb"BA.{12}BM", re.S), "an OS/2 bitmap array"),
    (re.compile(rb"\x01\xda[\x00\x01][\x01\x02]\x00[\x01-\x03]"), "SGI"),
    (re.compile(rb"\x0a[\x00\x02-\x05]\x01[\x01\x02\x04\x08]"), "PCX"),
    (re.compile(rb"(?:\xef\xbb\xbf)?+(?:\s++|<\?xml[^>]*+>|(?><!--.*?-->))*+<(?:svg[\s>/]|!DOCTYPE svg)", re.S), "SVG"),
    (re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html)[\s>]", re.I), "an HTML page"),
)
_QUOTE = rb"(?:b?['\"])?"
_BASE64 = (
    _QUOTE + rb"(?:[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk[0-9A-Za-z]|SUkqA|TU0AK|AAAA[\w+/-]{2}Z0eX)[\w+/=\s'\"-]*\Z"
)
_HEXADECIMAL = _QUOTE + rb"(?:0x)?(?:ffd8ff|89504e47|47494638|52494646)[0-9a-f\s'\"]*\Z"
_MARK, _UNKNOWN = rb"\xef\xbb\xbf", rb"\xef\xbf\xbd"
_MISREAD = (
    rb"%b(?:\xff\xd8\xff|\x89PNG)" % _MARK,  # unchanged, after a byte order mark
    rb"(?:%b)?(?:(?:%b){3}|(?:%b|\xc2\x89|\xe2\x80\xb0)PNG|\xc3\xbf\xc3\x98\xc3\xbf)" % (_MARK, _UNKNOWN, _UNKNOWN),
    rb"\0\x10JFIF\0|PNG\r?\n\x1a\r?\n",  # without the bytes that are not text
)
"""Images decoded as UTF-8, Latin-1 or Windows' code page, and encoded again as UTF-8."""
_FILE_NAME = rb"@?[^\0\r\n]{1,250}\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|hei[cf])\s*\Z"
_JSON = rb"(?:\xef\xbb\xbf)?\s*(?:\{\s*[\"}]|\[\s*[\[\]{\"\d-])"
_TEXTS: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(_QUOTE + rb"data:[\w/+.;=-]*,", re.I), "a data URL"),
    (re.compile(rb"https?://\S", re.I), "a URL, and this server fetches nothing"),
    (re.compile(_BASE64), "base64"),
    (re.compile(_HEXADECIMAL, re.I), "hexadecimal"),
    (re.compile(rb"b['\"](?:\\x|GIF8|RIFF|BM|II|MM)"), "bytes as a program prints them"),
    (re.compile(b"|".join(_MISREAD)), "an image that was read as text"),
    (
        re.compile(rb"--[^\r\n]{1,250}\r?\nContent-", re.I),
        "a form, which /classify, /classify/batch and /embed take if its Content-Type says so",
    ),
    (re.compile(rb"[\w.%\[\]-]{1,100}=(?:[\w.*~+&=-]|%[0-9a-f]{2})*(?:%[0-9a-f]?)?\Z", re.I), "a form without files"),
    (re.compile(_JSON), "JSON"),
    (re.compile(_FILE_NAME, re.I), "the name of a file"),
)
"""What people send by mistake instead of an image's bytes, by its beginning."""
_REMOVED = re.compile(rb"[\0\r\n]")
"""Bytes that `curl -d @FILE` removes. Every accepted format has some of them near its beginning."""
_LOOKED_AT = 1024
"""Number of bytes that the patterns are matched against."""


def format_of(data: bytes) -> str:
    """The format of a file, one of FORMATS.

    Raises:
        ServiceError: NOT_AN_IMAGE, which says what the bytes are instead, if that is known, or BROKEN_IMAGE.
    """
    for name, begins in _BEGINNINGS.items():
        if begins(data):
            return name
    if data.startswith(b"\x89PNG"):  # its signature contains line ends to reveal that a transfer has changed them
        raise damaged(data, "PNG")
    for pattern, text in _TEXTS:
        if pattern.match(data[:_LOOKED_AT]):
            how = "--data-binary @photo.jpg, or as a form's file: -F file=@photo.jpg"
            raise ServiceError(Code.NOT_AN_IMAGE, f"this is {text}; send the image's bytes: {how}")
    found = _other(data)
    if found is None:
        raise ServiceError(
            Code.NOT_AN_IMAGE, f"the body is not an image in an accepted format; send one of {', '.join(FORMATS)}"
        )
    raise unsupported(found)


def damaged(data: bytes, format_name: str) -> ServiceError:
    """The error for an image that cannot be decoded."""
    if (format_name == "PNG" and not _BEGINNINGS["PNG"](data)) or not _REMOVED.search(data, 0, _LOOKED_AT):
        why = "has lost line ends on the way, as it does with curl -d; send it as it is: curl --data-binary @photo.jpg"
    else:
        why = "is damaged or incomplete; check that it opens and send it again"
    return ServiceError(Code.BROKEN_IMAGE, f"the {format_name} image {why}")


def incomplete(format_name: str, share: float, of: str = "rows") -> ServiceError:
    """The error for an image that ends after a `share` of its rows or bytes, 0 to 1."""
    percent = min(99, int(100 * share))
    return ServiceError(
        Code.BROKEN_IMAGE, f"the {format_name} image ends after about {percent} % of its {of}; send all of it"
    )


def unsupported(what: str) -> ServiceError:
    """The error for an undamaged file that is not supported; `what` completes "this is ...".

    If the error spoke of damage, the client would look for a fault that is not there.
    """
    return ServiceError(Code.NOT_AN_IMAGE, f"this is {what}, which is not accepted; send one of {', '.join(FORMATS)}")


def brands(data: bytes) -> set[bytes]:
    """Major and compatible brands of an ISO base media file (ISO/IEC 14496-12, 4.3); empty for any other file."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), _LOOKED_AT)
    return {data[8:12]} | {data[at : at + 4] for at in range(16, end, 4)}


def _is_avif(data: bytes) -> bool:
    return not _AVIF_BRANDS.isdisjoint(brands(data))


def _is_heif(data: bytes) -> bool:
    return not _HEIF_BRANDS.isdisjoint(brands(data))


def _is_webp(data: bytes) -> bool:
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


_TIFF_BEGINNINGS = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
"""TIFF in both byte orders, also with the version in the wrong order, and BigTIFF."""

_BEGINNINGS: Mapping[str, Callable[[bytes], bool]] = {
    "JPEG": lambda data: data.startswith(b"\xff\xd8\xff") and data[3:4] != b"\xf7",
    "PNG": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    "WEBP": _is_webp,
    "GIF": lambda data: data.startswith((b"GIF87a", b"GIF89a")),
    "BMP": lambda data: data.startswith(b"BM"),
    "TIFF": lambda data: data.startswith(_TIFF_BEGINNINGS),
    "AVIF": _is_avif,  # before HEIF: both may have the brands that do not fix the codec
    "HEIF": _is_heif,
}


def _other(data: bytes) -> str | None:
    for at, magic, name in _MAGIC:
        if data.startswith(magic, at):
            return name
    for pattern, name in _PATTERNS:
        if pattern.match(data[:_LOOKED_AT]):
            return name
    found = brands(data)
    if b"crx " in found:
        return "a camera's raw file (Canon CR3)"
    if found:
        return "a video (MP4 or QuickTime)"
    return None
