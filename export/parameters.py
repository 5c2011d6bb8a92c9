"""Sources of an export's parameters: how each is identified, obtained, and described in the manifest."""

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
        """Return text that identifies the parameters."""
        return f"random {RANDOM_SEED}"

    def obtain(self, _folder: Path) -> None:
        """There is no file."""

    def describe(self) -> Weights:
        """Describe them for the manifest: the answers mean nothing."""
        return Weights(source=f"random, seed {RANDOM_SEED}", sha256=None, random=True)


@dataclass(frozen=True)
class OfTheZoo:
    """The published weights of a network of the zoo."""

    weights: OfficialWeights | PackagedWeights

    def identity(self) -> str:
        """Return text that identifies the parameters; download nothing."""
        return repr(self.weights)

    def obtain(self, folder: Path) -> Path:
        """Return the file, downloaded into `folder` if needed.

        Raises:
            WeightsError: the file cannot be obtained.
        """
        return weights.obtain(self.weights, folder)

    def describe(self, file: Path) -> Weights:
        """Describe their origin for the manifest."""
        home = weights.OFFICIAL_URL if isinstance(self.weights, OfficialWeights) else ""
        return Weights(source=home + file.name, sha256=weights.sha256_of(file))


@dataclass(frozen=True)
class Checkpoint:
    """The user's own file."""

    path: Path
    part: Part

    def identity(self) -> str:
        """Return text that identifies the parameters."""
        return weights.sha256_of(self.path) + str(self.part)

    def obtain(self, _folder: Path) -> Path:
        """Return the file."""
        return self.path

    def describe(self, file: Path) -> Weights:
        """Describe their origin for the manifest, without the folders of this machine."""
        return Weights(source=file.name + str(self.part), sha256=weights.sha256_of(file))


@dataclass(frozen=True)
class PublishedFile:
    """A file of a published model, in a repository of the hub or in a folder; or an index and the files it names."""

    place: Place
    name: str

    def identity(self) -> str:
        """Return text that identifies the parameters; download nothing, since a commit's files never change."""
        match self.place:
            case Repository():
                return f"{self.place.origin}/{self.name}"
            case Folder():
                return weights.sha256_of(self.place.path / self.name)
            case _:
                assert_never(self.place)

    def obtain(self, _folder: Path) -> Path:
        """Return the file, downloaded into the hub's cache if needed.

        Raises:
            SourceError: the file cannot be obtained.
        """
        file = self.place.file(self.name)
        for name in shards.names(file):
            self.place.file(name)  # the cache puts it beside the index
        return file

    def describe(self, file: Path) -> Weights:
        """Describe their origin for the manifest, with the hub's commit."""
        return Weights(source=f"{self.place.origin}/{self.name}", sha256=weights.sha256_of(file))


Parameters = Random | OfTheZoo | Checkpoint | PublishedFile
