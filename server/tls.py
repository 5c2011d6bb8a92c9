"""TLS: the certificate that the server shows, which may be renewed while it serves."""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

GOODBYE_S = 1.0
"""How long a connection that is closed waits for the client to close it, too."""


class TlsError(Exception):
    """The certificate or its key cannot be used; the message says why."""


class Certificate(NamedTuple):
    """PEM, and known to be usable where `read` made it."""

    chain: bytes
    key: bytes
    """Unencrypted."""


def read(chain: Path, key: Path) -> Certificate:
    """A certificate, with those that vouch for it, and its key.

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
        raise TlsError(f"{chain} and {key} are no certificate with its unencrypted key: {reason}") from error
    return certificate


def context(certificate: Certificate) -> ssl.SSLContext:
    """TLS 1.2 or later, with Python's choice of ciphers."""
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    with _path(certificate.chain) as chain, _path(certificate.key) as key:
        made.load_cert_chain(chain, key, password="")  # none: it would ask the terminal for one
    return made


class Renewable:
    """A context that may show another certificate to whoever connects later.

    Each handshake goes on with the newest context: one context keeps a certificate for each kind of key, the old one of
    another kind too.
    """

    def __init__(self, certificate: Certificate) -> None:
        self.context = self._newest = context(certificate)
        self.context.sni_callback = self._go_on  # also called for clients that name no server

    def renew(self, certificate: Certificate) -> None:
        """Show this one from now on."""
        self._newest = context(certificate)

    def _go_on(self, handshake: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        handshake.context = self._newest


@contextlib.contextmanager
def _path(content: bytes) -> Generator[str]:
    """Of a file without a name, as OpenSSL reads only files; in memory where there are such: keys are not for disks."""
    with os.fdopen(os.memfd_create("pem"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield f"/dev/fd/{file.fileno()}"
