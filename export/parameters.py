"""Where an export's parameters are from: what tells them apart, how they are had, what the manifest says of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from models import shards, weights
from models.hub import Folder, Place, Repository
from models.manifest import Weights
from models.part import Part
from models.zoo import OfficialWeights, PackagedWeights

RANDOM_SEED = 0


@dataclass(frozen=True)
class Random:
    """No trained parameters at all."""

    def identity(self) -> str:
        """Return what tells them apart."""
        return f"random {RANDOM_SEED}"

    def obtain(self, _folder: Path) -> None:
        """There is no file."""

    def describe(self) -> Weights:
        """Say in the manifest that its answers mean nothing."""
        return Weights(source=f"random, seed {RANDOM_SEED}", sha256=None, random=True)


@dataclass(frozen=True)
class OfTheZoo:
    """Published by whoever trained a network of the zoo; known by name."""

    weights: OfficialWeights | PackagedWeights

    def identity(self) -> str:
        """Return what tells them apart; nothing is fetched."""
        return repr(self.weights)

    def obtain(self, folder: Path) -> Path:
        """Return the file, downloaded into `folder` where needed.

        Raises:
            WeightsError: it is not to be had.
        """
        return weights.obtain(self.weights, folder)

    def describe(self, file: Path) -> Weights:
        """Say in the manifest where they came from."""
        home = weights.OFFICIAL_URL if isinstance(self.weights, OfficialWeights) else ""
        return Weights(source=home + file.name, sha256=weights.sha256_of(file))


@dataclass(frozen=True)
class Checkpoint:
    """A file of the user's."""

    path: Path
    part: Part

    def identity(self) -> str:
        """Return what tells them apart."""
        return weights.sha256_of(self.path) + str(self.part)

    def obtain(self, _folder: Path) -> Path:
        """Return the file."""
        return self.path

    def describe(self, file: Path) -> Weights:
        """Say in the manifest where they came from, without the folders of this machine."""
        return Weights(source=file.name + str(self.part), sha256=weights.sha256_of(file))


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published model, in a repository of the hub or in a folder; of an index, what it names, too."""

    place: Place
    name: str

    def identity(self) -> str:
        """Return what tells them apart; nothing is fetched, since a commit's files never change."""
        match self.place:
            case Repository():
                return f"{self.place.origin}/{self.name}"
            case Folder():
                return weights.sha256_of(self.place.path / self.name)
            case _:
                assert_never(self.place)

    def obtain(self, _folder: Path) -> Path:
        """Return the file, fetched into the hub's cache where needed.

        Raises:
            SourceError: it is not to be had.
        """
        file = self.place.file(self.name)
        for name in shards.names(file):
            self.place.file(name)  # comes to lie beside it
        return file

    def describe(self, file: Path) -> Weights:
        """Say in the manifest where they came from: of the hub, at which commit."""
        return Weights(source=f"{self.place.origin}/{self.name}", sha256=weights.sha256_of(file))


Parameters = Random | OfTheZoo | Checkpoint | PublishedFile
