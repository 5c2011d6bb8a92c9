"""TLS: the certificate that the server shows."""

import ssl
from pathlib import Path

GOODBYE_S = 1.0
"""How long a connection that is closed waits for the client to close it, too."""


class TlsError(Exception):
    """The certificate or its key cannot be used; the message says why."""


def context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or later, with Python's choice of ciphers.

    Raises:
        TlsError: a file cannot be read, they do not belong together, or the key is encrypted.
    """
    found = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    found.minimum_version = ssl.TLSVersion.TLSv1_2
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as error:
            raise TlsError(f"{path}: {error.strerror}") from error
    try:
        found.load_cert_chain(certificate, key, password="")  # none: it would ask the terminal for one
    except ssl.SSLError as error:
        reason = (error.reason or "no PEM").replace("_", " ").lower()
        raise TlsError(f"{certificate} and {key} are no certificate with its unencrypted key: {reason}") from error
    return found
