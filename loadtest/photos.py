"""The photos to send."""

from io import BytesIO
from pathlib import Path

from PIL import Image

FOLDER = Path(__file__).parents[1] / "export" / "photos"
"""The project's own; real load is more varied, so use a larger folder if you have one."""

FORM_TYPE = "multipart/form-data; boundary=----a-photo----"
"""The Content-Type of what `form` returns."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def find(folder: Path) -> list[Path]:
    """The photos in `folder` and below it, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    photos = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not photos:
        raise FileNotFoundError(f"no photos in {folder}: name a folder with some of {', '.join(sorted(_SUFFIXES))}")
    return photos


def form(photo: bytes) -> bytes:
    """A form with the photo as its file, as `curl -F file=@` and browsers send it."""
    head = b'------a-photo----\r\nContent-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
    return head + b"Content-Type: image/jpeg\r\n\r\n" + photo + b"\r\n------a-photo------\r\n"


def resized(photo: bytes, width: int, height: int) -> bytes:
    """A photo as a JPEG of another size; a larger one is tiled from it, so that it costs as much as a real photo."""
    image = Image.open(BytesIO(photo)).convert("RGB")
    if width <= image.width and height <= image.height:
        image = image.resize((width, height))
    tiled = Image.new("RGB", (width, height))
    for left in range(0, width, image.width):
        for top in range(0, height, image.height):
            tiled.paste(image, (left, top))
    stream = BytesIO()
    tiled.save(stream, "JPEG", quality=90)
    return stream.getvalue()
