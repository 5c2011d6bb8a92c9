"""API keys: a file of their hashes, with roles and rate limits. `python -m server.keys new NAME` makes a key."""

import argparse
import hashlib
import hmac
import math
import secrets
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from models.errors import first_mistake
from server.errors import Code, ServiceError
from server.usage import Usage

RoleName = Literal["classify", "admin"]
RANK: dict[RoleName, int] = {"classify": 1, "admin": 2}
"""A role includes those of lower rank."""
KEY_BYTES = 32
"""Random bytes of a key: too many to guess, so its hash needs no salt, and can be fast, as every request computes it.
"""
MAX_FILE_BYTES = 256 * 2**10
"""Room for some two thousand keys: each request is compared with all of them."""
MAX_KEYS = MAX_FILE_BYTES // len("N " + 64 * "0")
"""No more keys fit a file of that size."""
ROUNDING_S = 1e-6
"""Tolerance for rounding errors in sums of times: a request that is early by less is let through."""


class KeysError(Exception):
    """A file of keys that cannot be used; the message says where and why."""


class Key(BaseModel):
    """One line of the file: `NAME SHA256 [role=admin] [rate=50] [burst=100] [concurrent=8]`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    role: RoleName = "classify"
    rate: Annotated[float, Field(ge=1e-6, le=1e6)] = math.inf
    """Sustained requests per second."""
    burst: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests at once after a pause; None: those of one second, at least one."""
    concurrent: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Requests under way at one time; None: as many as the server takes."""


class RefusedError(ServiceError):
    """UNAUTHORIZED, FORBIDDEN or RATE_LIMITED; for the last two, with the name of the key."""

    def __init__(self, code: Code, detail: str, retry_after_s: int | None = None, *, key: str | None = None) -> None:
        super().__init__(code, detail, retry_after_s)
        self.key = key


class Account:
    """One key, and its use of its limits across all HTTP workers. The clock is the caller's."""

    def __init__(self, key: Key, worker: int, usage: Usage) -> None:
        self.digest = bytes.fromhex(key.sha256)
        self.key = key
        self._worker = worker
        self._usage = usage

    def enter(self, now_s: float) -> ExitStack:
        """Begin a request; closing the returned stack ends it.

        The rate is limited by a bucket of `burst` requests, stored as the time at which it will be full again (the
        generic cell rate algorithm, ITU-T I.371, annex A).

        Raises:
            RefusedError: RATE_LIMITED.
        """
        key = self.key
        under_way = ExitStack()
        if key.rate == math.inf and key.concurrent is None:
            return under_way
        with self._usage.of(key.sha256) as used:
            if used is None:
                return under_way  # the key was removed a moment ago
            running = int(used["running"].sum())
            if key.concurrent is not None and running >= key.concurrent:
                detail = f"key {key.name} already has {running} requests under way, its limit: wait until one ends"
                raise RefusedError(Code.RATE_LIMITED, detail, 1, key=key.name)
            if key.rate < math.inf:
                burst = key.burst or max(1, math.ceil(key.rate))
                empty_s = now_s + burst / key.rate  # when an empty bucket is full; never later, though the rate changed
                used["full_s"] = min(max(used["full_s"], now_s), empty_s)
                early_s = float(used["full_s"]) + 1 / key.rate - empty_s
                if early_s > ROUNDING_S:
                    allowed = f"{key.rate:g} requests per second, and {burst} at once"
                    detail = f"key {key.name} may send {allowed}: send fewer"
                    raise RefusedError(Code.RATE_LIMITED, detail, math.ceil(early_s), key=key.name)
                used["full_s"] += 1 / key.rate
            if key.concurrent is not None:
                used["running"][self._worker] += 1
                under_way.callback(self._leave)
        return under_way

    def _leave(self) -> None:
        with self._usage.of(self.key.sha256) as used:
            if used is not None and used["running"][self._worker]:
                used["running"][self._worker] -= 1


class Keys:
    """The API keys that one process knows; they can be replaced while requests are under way."""

    def __init__(self, keys: Sequence[Key], worker: int, usage: Usage) -> None:
        self._worker = worker
        self._usage = usage
        self._accounts: list[Account] = []
        self.replace(keys)

    def replace(self, keys: Sequence[Key]) -> None:
        """Accept only these keys from now on; those known already keep their usage."""
        known = {account.digest: account for account in self._accounts}
        self._accounts = []
        for key in keys:
            account = known.get(bytes.fromhex(key.sha256)) or Account(key, self._worker, self._usage)
            account.key = key
            self._accounts.append(account)

    def account(self, sent: bytes | None, role: RoleName) -> Account:
        """The account whose key was sent, if it has the role. Takes the same time for any key.

        Raises:
            RefusedError: UNAUTHORIZED, FORBIDDEN.
        """
        if not sent:
            raise RefusedError(
                Code.UNAUTHORIZED, "this request needs an API key: send Authorization: Bearer KEY, or X-API-Key: KEY"
            )
        digest = hashlib.sha256(sent).digest()
        found = None
        for account in self._accounts:
            if hmac.compare_digest(account.digest, digest):
                found = account
        if not found:
            raise RefusedError(Code.UNAUTHORIZED, "the server does not know this API key; ask its operator for one")
        if RANK[found.key.role] < RANK[role]:
            detail = f"key {found.key.name} has the role {found.key.role}; this needs {role}"
            raise RefusedError(Code.FORBIDDEN, detail, key=found.key.name)
        return found


def usage_table(folder: Path, workers: int) -> Usage:
    """The usage table of a run, in its folder."""
    return Usage(folder / "usage", MAX_KEYS, workers)


def bearer(authorization: bytes) -> bytes:
    """The key in an `Authorization` field (RFC 6750, 2.1); empty if its scheme is not Bearer."""
    scheme, _, key = authorization.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def read(path: Path) -> tuple[Key, ...]:
    """Read the keys in a file, at least one; empty lines and anything after a `#` are ignored.

    Raises:
        KeysError: the file or a line is not valid; the message quotes no hash, which could be a key by mistake.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        lines = content.decode("ascii").splitlines()
    except OSError as error:
        raise KeysError(f"{path}: {error.strerror}") from error
    except UnicodeError:
        raise KeysError(f"{path}: not ASCII") from None
    if len(content) > MAX_FILE_BYTES:
        raise KeysError(f"{path}: over {MAX_FILE_BYTES} bytes")
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                keys.append(_key(words))
            except ValidationError as error:
                raise KeysError(f"{path}, line {number}: {first_mistake(error)}") from None
            except ValueError as error:
                raise KeysError(f"{path}, line {number}: {error}") from None
    if not keys:
        raise KeysError(f"{path}: no key in it; python -m server.keys new NAME makes one")
    for what, values in (("names", [key.name for key in keys]), ("hashes", [key.sha256 for key in keys])):
        if len(set(values)) < len(values):
            raise KeysError(f"{path}: two keys have equal {what}")
    return tuple(keys)


def _key(words: list[str]) -> Key:
    name, *rest = words
    if not rest or not all("=" in word for word in rest[1:]):
        raise ValueError("must be NAME SHA256 [role=admin] [rate=50] [burst=100] [concurrent=8]")
    options = dict(word.split("=", 1) for word in rest[1:])
    if len(options) < len(rest) - 1:
        raise ValueError("an option is given twice")
    return Key.model_validate({**options, "name": name, "sha256": rest[0]})


def main() -> int:
    """Make a key: print its line for the file to standard output, and the key itself, this once, to standard error."""
    parser = argparse.ArgumentParser(prog="python -m server.keys", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    new = commands.add_parser("new", help="make a key: python -m server.keys new NAME >> keys.txt")
    new.add_argument("name", help="owner of the key, shown in answers and logs")
    new.add_argument("--role", default="classify", choices=RANK, help="admin may also load and unload models")
    new.add_argument("--rate", help="sustained requests per second")
    new.add_argument("--burst", help="requests at once after a pause; default: those of one second")
    new.add_argument("--concurrent", help="requests under way at one time")
    asked = parser.parse_args()
    secret = f"rsk_{secrets.token_urlsafe(KEY_BYTES)}"
    given = {name: getattr(asked, name) for name in ("role", "rate", "burst", "concurrent")}
    words = [asked.name, hashlib.sha256(secret.encode()).hexdigest()]
    words += [f"{name}={value}" for name, value in given.items() if value not in (None, "classify")]
    try:
        _key(words)
    except ValidationError as error:
        print(f"python -m server.keys: {first_mistake(error)}", file=sys.stderr)
        return 2
    print(*words)
    print(f"the key of {asked.name}, shown only this once: {secret}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
