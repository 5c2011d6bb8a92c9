"""Published models: a repository of the Hugging Face Hub, or a folder with the same files.

`hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION` names a repository (a revision is a branch, a tag or a commit), a path names
a folder. `huggingface_hub` downloads the files, with its usual cache, tokens and environment variables. All files of
one export come from one commit.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from models import foreign, hints, shards
from models.errors import ExpectedError, first_line

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

PREFIX = "hf:"
CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
SAFE, SHARDED, PICKLE = "model.safetensors", "model.safetensors" + shards.SUFFIX, "pytorch_model.bin"
"""Weights as both libraries write them: one file, an index for a large model, or a pickle from before safetensors."""
ANSWER_TIMEOUT_S = 10.0
_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+|[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_MAX_LISTED = 6
_T = TypeVar("_T")


class SourceError(ExpectedError):
    """A repository or folder cannot be read, or lacks a file; the message says what to do."""


class UnreachableHubError(SourceError):
    """The hub does not answer, and the cache lacks what is needed."""


@dataclass(frozen=True)
class Folder:
    """A folder on this machine."""

    path: Path

    @property
    def origin(self) -> str:
        """The folder's name, without the folders above it."""
        return self.path.resolve().name

    @property
    def title(self) -> str:
        """Default name for the model."""
        return self.origin

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return (self.path / name).is_file()

    def file(self, name: str) -> Path:
        """Return the path of a file that exists."""
        return self.path / name

    def names(self) -> frozenset[str]:
        """Return the names of everything in the folder.

        Raises:
            SourceError: the folder cannot be read.
        """
        try:
            return frozenset(path.name for path in self.path.iterdir())
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}") from error


@dataclass(frozen=True)
class Repository:
    """A repository of the hub at one commit."""

    name: str
    commit: str
    """All 40 hex digits."""
    files: frozenset[str] | None
    """None: the hub was not asked, and only files in the cache count."""

    @property
    def origin(self) -> str:
        """The source that names this commit again."""
        return f"{PREFIX}{self.name}@{self.commit}"

    @property
    def title(self) -> str:
        """Default name for the model."""
        return self.name.rpartition("/")[2]

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return _cached(self.name, name, self.commit) is not None if self.files is None else name in self.files

    def file(self, name: str) -> Path:
        """Return the path of a file that exists, downloaded into the hub's cache if needed.

        Raises:
            SourceError: the file cannot be downloaded.
        """
        from huggingface_hub import hf_hub_download  # takes a quarter of a second, and only the hub needs it

        return _answered(lambda: Path(hf_hub_download(self.name, name, revision=self.commit)), self.name, self.commit)

    def names(self) -> frozenset[str]:
        """Return the names of all files, as far as they are known."""
        return self.files or frozenset(name for name in (CONFIG, PREPROCESSOR, SAFE, SHARDED, PICKLE) if self.has(name))


Place = Folder | Repository


def is_place(name: str) -> bool:
    """Whether a source is a path or a place on the hub; names of networks and models never look like one."""
    return name.startswith(PREFIX) or os.sep in name


def locate(name: str) -> Place:
    """Find the folder or the repository of that name; ask the hub for the repository's commit.

    Raises:
        UnreachableHubError: the hub does not answer, and its cache does not have the model.
        SourceError: there is no such place, or this user may not read it.
    """
    if not name.startswith(PREFIX):
        return _folder(name)
    match = _NAME.fullmatch(name)
    if match is None:
        raise SourceError(f"{name} names no model of the hub: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    return _repository(match["repository"], match["revision"])


def _folder(name: str) -> Folder:
    path = Path(name)
    if path.is_dir():
        folder = Folder(path)
        if not folder.has(CONFIG):
            raise SourceError(_no_config(name, folder.names()))
        return folder
    if path.is_file():
        if path.suffix == ".onnx":
            raise SourceError(f"{name} is an ONNX file: export/from_onnx.py takes it")
        raise SourceError(f"{name} is a file: name its network, and give the file with --weights {name}")
    of_hub = re.sub(r"^hf[-_]hub:", "", name)
    if _NAME.fullmatch(PREFIX + of_hub):
        raise SourceError(f"there is no folder {name}; a model of the hub is {PREFIX}{of_hub}")
    raise SourceError(f"there is no folder {name}")


def _repository(name: str, revision: str | None) -> Repository:
    try:
        from huggingface_hub import HfApi, hf_hub_download
        from huggingface_hub.constants import is_offline_mode
    except ImportError as error:
        raise SourceError(hints.missing("huggingface_hub")) from error

    def ask() -> "ModelInfo":
        return HfApi().model_info(name, revision=revision, timeout=ANSWER_TIMEOUT_S)

    try:
        if is_offline_mode():
            raise UnreachableHubError(
                f"{PREFIX}{name} is not in the hub's cache, and HF_HUB_OFFLINE is set: unset it to download it"
            )
        files = frozenset(file.rfilename for file in _answered(ask, name, revision).siblings or ())
    except UnreachableHubError:
        if cached := _cached(name, CONFIG, revision or "main"):
            return Repository(name, cached.parent.name, files=None)
        raise
    if CONFIG not in files:
        raise SourceError(_no_config(f"{PREFIX}{name}", files))
    # Requested by branch, so that the cache later knows the branch's commit without the hub.
    config = _answered(lambda: Path(hf_hub_download(name, CONFIG, revision=revision)), name, revision)
    return Repository(name, config.parent.name, files)


def _cached(repository: str, name: str, revision: str) -> Path | None:
    """Return a file from the hub's cache; None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _answered(ask: Callable[[], _T], repository: str, revision: str | None) -> _T:
    """Ask the hub, and turn a refusal into a one-line error that says what to do."""
    import httpx2
    from huggingface_hub import errors

    name = PREFIX + repository
    try:
        return ask()
    except errors.GatedRepoError as error:
        raise SourceError(
            f"{name} is gated: accept its conditions at {_endpoint()}/{repository} and log in with"
            " `hf auth login`, or set HF_TOKEN to a token of yours"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"the hub has no model {repository}, or it is private: correct the name; for a private one log in with"
            " `hf auth login`, or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"{name} has no revision {revision}: name a branch, a tag or a commit of its page") from error
    except errors.HFValidationError as error:
        raise SourceError(f"{name} names no model of the hub: write hf:OWNER/NAME") from error
    except errors.HfHubHTTPError as error:
        _refused(name, error)
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, httpx2.HTTPError) as error:
        reason = error.__cause__ or error
        raise UnreachableHubError(
            f"{name}: {_endpoint()} does not answer ({first_line(reason)}), and the cache does not have it: set"
            " HF_ENDPOINT to a mirror's address, or give a folder with its files"
        ) from error
    except OSError as error:
        raise SourceError(f"{name} cannot be stored in the hub's cache: {error}; HF_HOME can name another") from error


def _refused(name: str, error: "OSError") -> NoReturn:
    """Report a status that has no error class of its own."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    if status in (401, 403):
        raise SourceError(
            f"{_endpoint()} refuses {name} ({status}): the token in HF_TOKEN or of `hf auth login` may not read it"
        ) from error
    if status >= 500 or status == 429:
        raise UnreachableHubError(f"{_endpoint()} answers {status} for {name}: try again later") from error
    raise SourceError(f"{_endpoint()} refuses {name}: {first_line(error)}") from error


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _no_config(name: str, files: Iterable[str]) -> str:
    files = sorted(files)
    if "saved_model.pb" in files:
        return f"{name} {foreign.SAVED_MODEL}"
    if onnx := next((file for file in files if file.endswith(".onnx")), None):
        return f"{name} has no {CONFIG}, but an ONNX file: export/from_onnx.py takes {onnx}"
    return (
        f"{name} has no {CONFIG}, as timm and transformers write it, but {listed(files)}: name the network, and give"
        " the file with --weights FILE"
    )


def listed(files: Iterable[str]) -> str:
    """Name the first few of a place's files, for a message."""
    names = sorted(files)
    return (
        ", ".join(names[:_MAX_LISTED]) + (f" and {len(names) - _MAX_LISTED} more" if names[_MAX_LISTED:] else "")
        or "nothing"
    )
