"""TLS: the certificate that the server presents, which can be renewed while it serves."""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

GOODBYE_S = 1.0
"""How long the server, closing a connection, waits for the client to close it, too."""


class TlsError(Exception):
    """The certificate or its key cannot be used; the message says why."""


class Certificate(NamedTuple):
    """A certificate chain and its key, as PEM. `read` returns only valid ones."""

    chain: bytes
    key: bytes
    """Unencrypted."""


def read(chain: Path, key: Path) -> Certificate:
    """Read a certificate with its chain, and its key.

    Raises:
        TlsError: a file cannot be read, they do not belong together, or the key is encrypted.
    """
    contents = []
    for path in (chain, key):
        try:
            contents.append(path.read_bytes())
        except OSError as error:
            raise TlsError(f"{path}: {error.strerror}") from error
    certificate = Certificate(*contents)
    try:
        context(certificate)
    except OSError as error:  # ssl.SSLError is one
        known = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        reason = (known or "no PEM").replace("_", " ").lower()
        raise TlsError(f"{chain} and {key} are not a certificate and its unencrypted key: {reason}") from error
    return certificate


def context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.2 or later, with Python's choice of ciphers."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    with _path(certificate.chain) as chain, _path(certificate.key) as key:
        made.load_cert_chain(chain, key, password="")  # without a password, OpenSSL would ask the terminal for one
    return made


class Renewable:
    """A context whose certificate can be replaced: later connections get the new one.

    Each handshake switches to the newest context. Loading the new certificate into the old context would not do, since
    a context keeps one certificate for each kind of key: the old one of another kind would stay in use.
    """

    def __init__(self, certificate: Certificate) -> None:
        self.context = self._newest = context(certificate)
        self.context.sni_callback = self._go_on  # called even if the client names no server

    def renew(self, certificate: Certificate) -> None:
        """Present this certificate from now on."""
        self._newest = context(certificate)

    def _go_on(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._newest


@contextlib.contextmanager
def _path(content: bytes) -> Generator[str]:
    """Path of a nameless file, as OpenSSL reads only files; in memory if possible, as keys do not belong on disks."""
    with os.fdopen(os.memfd_create("pem"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"
