"""The photos that are sent."""

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "export" / "photos"
"""Comes with the project; real load is more varied, so give a larger folder where you have one."""

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def find(folder: Path) -> list[Path]:
    """The photos in `folder`, by name.

    Raises:
        FileNotFoundError: there are none.
    """
    photos = sorted(path for path in folder.glob("*") if path.suffix.lower() in _SUFFIXES)
    if not photos:
        raise FileNotFoundError(f"no photos in {folder}: name a folder with some of {', '.join(sorted(_SUFFIXES))}")
    return photos
