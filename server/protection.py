"""The API keys and the certificate, reread from their files while the server runs."""

import logging

from server import keys, tls
from server.control import Authorise, Renew
from server.errors import StartupError
from server.keys import Key, KeysError
from server.settings import Settings
from server.tls import Certificate, TlsError
from server.watched import Watched

log = logging.getLogger(__name__)


class Protection:
    """The current contents of the key and certificate files."""

    def __init__(self, settings: Settings) -> None:
        """Read them.

        Raises:
            StartupError: one cannot be used.
        """
        certificate = settings.tls_certificate, settings.tls_key
        try:
            self._keys = Watched(keys.read, settings.api_keys) if settings.api_keys else None
            self._certificate = Watched(tls.read, *filter(None, certificate)) if all(certificate) else None
        except (KeysError, TlsError) as error:
            raise StartupError(str(error)) from error
        self._path = settings.tls_certificate

    @property
    def keys(self) -> tuple[Key, ...] | None:
        """The API keys; None: anybody may do anything."""
        return self._keys.content if self._keys else None

    @property
    def certificate(self) -> Certificate | None:
        """The certificate; None: no TLS."""
        return self._certificate.content if self._certificate else None

    def look(self, *, again: bool = False) -> list[Authorise | Renew]:
        """Read the files that have changed, or all with `again`; return the messages for the HTTP workers.

        If a file is not valid, that is logged and the old contents stay.
        """
        told: list[Authorise | Renew] = []
        try:
            if self._keys and self._keys.look(again=again):
                log.info("API keys: %s", ", ".join(key.name for key in self._keys.content))
                told.append(Authorise(self._keys.content))
        except KeysError as error:
            log.warning("the API keys stay as they were: %s", error)
        try:
            if self._certificate and self._certificate.look(again=again):
                log.info("read %s again", self._path)
                told.append(Renew(self._certificate.content))
        except TlsError as error:
            log.warning("the certificate stays as it was: %s", error)
        return told
