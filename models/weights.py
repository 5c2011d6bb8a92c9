"""Trained parameters as files: downloaded from their official site, or found in an installed package.

Every returned file has the digest that its name promises. The next call resumes an interrupted download; a file with a
wrong digest is never kept.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from importlib.util import find_spec
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import BinaryIO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from models import hints, shards
from models.errors import ExpectedError
from models.zoo import OfficialWeights, PackagedWeights

OFFICIAL_URL = "https://download.pytorch.org/models/"
MIRROR_VARIABLE = "RESNET_WEIGHTS_MIRROR"
"""Environment variable: the URL of a folder with the same files, used instead of the official one."""
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
_WAY_OUT = f"Give the file with --weights FILE, or a mirror's address in {MIRROR_VARIABLE}."


class WeightsError(ExpectedError):
    """The weights cannot be obtained; the message says what to do."""


class UnreachableError(WeightsError):
    """The site that should have the weights does not answer, or refuses the download."""


def sha256_of(path: Path) -> str:
    """Return the hex SHA-256 of a file, or of all files that an index (`models.shards`) names, concatenated.

    Raises:
        WeightsError: a file cannot be read.
        ShardsError: the file is named like an index, but is not one.
    """
    digest = hashlib.sha256()
    for part in shards.files(path):
        try:
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)  # continues the same digest
        except OSError as error:
            raise WeightsError(f"{part}: {error.strerror}") from error
    return digest.hexdigest()


def digest_prefix(file_name: str) -> str:
    """Return the first hex digits of a file's SHA-256 as its name carries them: `resnet18-f37072fd.pth`."""
    return Path(file_name).stem.rpartition("-")[2]


def source_url(weights: OfficialWeights) -> str:
    """Return the URL that the weights are fetched from."""
    return (os.environ.get(MIRROR_VARIABLE) or OFFICIAL_URL).rstrip("/") + "/" + weights.file_name


def obtain(weights: OfficialWeights | PackagedWeights, folder: Path) -> Path:
    """Return a file with the weights, downloaded into `folder` unless it is there already.

    Raises:
        UnreachableError: no answer within CONNECT_TIMEOUT_S.
        WeightsError: the download failed or the digest is wrong.
    """
    if isinstance(weights, PackagedWeights):
        return _packaged(weights)
    path = folder / weights.file_name
    if not path.exists():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(source_url(weights), path)
        except OSError as error:
            raise WeightsError(f"{folder} cannot store the weights: {error.strerror}") from error
    elif not sha256_of(path).startswith(digest_prefix(path.name)):
        raise WeightsError(f"{path} does not have the SHA-256 that its name promises: delete it and run this again")
    return path


def _packaged(weights: PackagedWeights) -> Path:
    spec = find_spec(weights.package)
    if spec is None or spec.origin is None:
        raise WeightsError(f"the package {weights.package} is not installed: {hints.install('export')}")
    path = Path(spec.origin).parent / weights.path
    if not sha256_of(path).startswith(digest_prefix(path.name)):
        raise WeightsError(f"{path} does not have the SHA-256 that its name promises: install {weights.package} again")
    return path


def _download(url: str, path: Path) -> None:
    """Download `url` to `path` by way of `path`.part, which is kept only if the connection is lost."""
    part = path.with_name(path.name + ".part")
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise WeightsError(f"another process is downloading {path}: run this again when it is done") from error
        try:
            _append_rest(url, file)
        finally:
            if file.tell() == 0:
                part.unlink()
    if not sha256_of(part).startswith(digest_prefix(path.name)):
        part.unlink()
        raise WeightsError(f"{url} does not have the SHA-256 that its name promises; nothing was kept. {_WAY_OUT}")
    part.replace(path)


def _append_rest(url: str, file: BinaryIO) -> None:
    """Append the part of `url` that `file` still lacks."""
    have = file.tell()
    try:
        response = _connect(url, first_byte=have)
    except HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing
        raise UnreachableError(f"{url} answers {error.code} {error.reason}. {_WAY_OUT}") from error
    with response:
        if response.status != HTTPStatus.PARTIAL_CONTENT:  # the server ignores ranges and starts over
            file.truncate(0)
            have = 0
        total = have + (response.length or 0)
        with tqdm(desc=Path(url).name, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar:
            for chunk in _chunks(response):
                file.write(chunk)
                bar.update(len(chunk))
        if file.tell() < total:
            raise WeightsError(f"{url} was cut after {file.tell()} of {total} bytes: run this again, it resumes there")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """Yield the body until it ends, whether by itself or because the connection is lost."""
    try:
        while chunk := response.read(_CHUNK_BYTES):
            yield chunk
    except (OSError, HTTPException):
        return


def _connect(url: str, first_byte: int) -> HTTPResponse:
    """Request `url` from `first_byte` on, and wait CONNECT_TIMEOUT_S for the response's headers.

    A thread makes the request: a socket's timeout covers neither name resolution nor a second address.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise WeightsError(f"{url} is not an http address: correct {MIRROR_VARIABLE}")
    request = Request(url, headers={"Range": f"bytes={first_byte}-"} if first_byte else {})  # noqa: S310 scheme is checked
    answers: SimpleQueue[HTTPResponse | OSError | HTTPException] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(urlopen(request, timeout=READ_TIMEOUT_S))  # noqa: S310 scheme is checked
        except (OSError, HTTPException) as error:
            answers.put(error)

    Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_TIMEOUT_S)
    except Empty:
        raise UnreachableError(f"{url} did not answer within {CONNECT_TIMEOUT_S:.0f} s. {_WAY_OUT}") from None
    if isinstance(answer, HTTPError):
        raise answer
    if isinstance(answer, Exception):
        reason = getattr(answer, "reason", answer)
        raise UnreachableError(f"{url} cannot be reached ({reason}). {_WAY_OUT}") from answer
    return answer
