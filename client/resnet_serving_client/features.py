"""The files that the command `classify` writes: features of many images, and photos with their heat maps."""

import os
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from resnet_serving_client.decoding import ARRAYS, lacking
from resnet_serving_client.errors import ClientError
from resnet_serving_client.responses import Classification

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = (".npy", ".parquet")


class FileError(ClientError):
    """A file cannot be written."""


class FeaturesFile:
    """Features of images, in their order.

    A .npy file is float32[N, C], with a row of NaN for each image that failed. A .parquet file has a row for each that
    did not: its name, the model and its version, and the features as a list of float32.
    """

    def __init__(self, path: Path) -> None:
        """Create the file's folder, before anything is classified.

        Raises:
            FileError: the suffix is not one of KINDS, a package that writes it is not installed, or the file cannot be
                written.
        """
        if path.suffix not in KINDS:
            raise FileError(f"--features writes {' or '.join(KINDS)}: {path} is neither by its name")
        if reason := lacking(*ARRAYS, *(["pyarrow"] if path.suffix == ".parquet" else [])):
            raise FileError(f"--features cannot write {path.suffix}: {reason}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from None
        if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
            raise FileError(f"{path}: it cannot be written")
        self._path = path
        self._rows: list[tuple[str, Classification | None]] = []

    def add(self, name: str, answer: Classification | None) -> None:
        """Add the answer for the next image; None: it failed."""
        self._rows.append((name, answer))

    def write(self) -> None:
        """Write the file, unless every image failed.

        Raises:
            FileError: the file cannot be written.
        """
        answers = [answer for _, answer in self._rows if answer is not None]
        if not answers:
            return
        try:
            if self._path.suffix == ".npy":
                self._write_array()
            else:
                self._write_table()
        except OSError as error:
            raise FileError(f"{self._path}: {error.strerror or error}") from None

    def _write_array(self) -> None:
        import numpy as np

        length = next(len(answer.features) for _, answer in self._rows if answer and answer.features is not None)
        rows = np.full((len(self._rows), length), np.nan, np.float32)
        for row, features in zip(rows, self._features(), strict=True):
            if features is not None:
                row[:] = features
        np.save(self._path, rows)

    def _write_table(self) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        there = [(name, answer) for name, answer in self._rows if answer is not None]
        columns = {
            "image": pa.array([name.encode(errors="backslashreplace").decode() for name, _ in there], pa.string()),
            "model": pa.array([answer.model for _, answer in there], pa.string()),
            "version": pa.array([answer.version for _, answer in there], pa.int32()),
            "features": pa.array([answer.features for _, answer in there], pa.list_(pa.float32())),
        }
        parquet.write_table(pa.table(columns), self._path)

    def _features(self) -> "Iterator[NDArray[np.float32] | None]":
        return (answer.features if answer is not None else None for _, answer in self._rows)


class HeatmapFolder:
    """A folder of pictures named after their images; of images with one name, the later ones get a number."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            FileError: the folder cannot be created.
        """
        self._path = path
        self._taken: set[str] = set()
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"{path}: {error.strerror}") from None

    def reserve(self, name: str) -> Path:
        """Return the path for the next image of that name."""
        stem = re.sub(r"[^\w.-]", "_", Path(name).stem)[:100] or "image"
        names = (stem if number == 1 else f"{stem}-{number}" for number in count(1))
        free = next(each for each in names if each.casefold() not in self._taken)  # to macOS, A.png is a.png
        self._taken.add(free.casefold())
        return self._path / f"{free}.png"


def write_heatmap(path: Path, picture: bytes) -> None:
    """Write a PNG.

    Raises:
        FileError: the file cannot be written.
    """
    try:
        path.write_bytes(picture)
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None
