"""TLS on both ports: clients that trust the certificate are served, and limits on slow and large heads still hold."""

import json
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from server.http.protocol import MAX_FIELDS
from server.tls import TlsError, read
from tests import tiny
from tests.server.certificates import written
from tests.server.running import PATIENCE_S, RunningServer, red_image, until

GET = b"GET /livez HTTP/1.1\r\nHost: here\r\n"
HELLO = bytes.fromhex("1603010200")
"""The start of a handshake, which announces a record of 512 bytes."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("tls"))[0]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[RunningServer]:
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository)
    with RunningServer(
        repository,
        grpc_port=0,
        tls_certificate=certificate,
        tls_key=certificate.with_name("key.pem"),
        header_timeout_ms=1000,
        body_timeout_ms=1000,
    ) as running:
        yield running


def connected(url: str) -> socket.socket:
    """A TCP connection, without TLS yet."""
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=PATIENCE_S)


def encrypted(server: RunningServer, certificate: Path) -> ssl.SSLSocket:
    return ssl.create_default_context(cafile=certificate).wrap_socket(
        connected(server.url), server_hostname="127.0.0.1"
    )


def is_closed(connection: socket.socket) -> bool:
    """Whether the server has closed it, once nothing is left to read; a reset counts as well."""
    try:
        while connection.recv(4096):
            pass
    except (ConnectionResetError, ssl.SSLError):
        pass
    return True


def test_who_trusts_the_certificate_is_served(server: RunningServer) -> None:
    assert server.url.startswith("https://")
    assert server.classify(red_image(8)).json()["predictions"][0]["class_id"] == 8


def test_who_does_not_speaks_with_nobody(server: RunningServer) -> None:
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{server.url}/livez")


def test_nothing_is_answered_in_the_clear(server: RunningServer) -> None:
    with connected(server.url) as connection:
        connection.sendall(GET + b"\r\n")
        assert b"HTTP" not in connection.recv(4096)


def test_old_versions_are_refused(server: RunningServer, certificate: Path) -> None:
    old = ssl.create_default_context(cafile=certificate)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with connected(server.url) as connection, pytest.raises(ssl.SSLError):
        old.wrap_socket(connection, server_hostname="127.0.0.1")


@pytest.mark.parametrize("sent", [b"", HELLO, HELLO + b"\x01"])
def test_a_handshake_that_is_not_finished_ends_the_connection(server: RunningServer, sent: bytes) -> None:
    with connected(server.url) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def test_a_handshake_that_drips_ends_as_soon(server: RunningServer) -> None:
    with connected(server.url) as connection:
        connection.sendall(HELLO)
        connection.settimeout(0.05)

        def dripped_out() -> bool:
            try:
                connection.sendall(b"a")
                return is_closed(connection)
            except TimeoutError:
                return False
            except OSError:
                return True

        until(dripped_out)


@pytest.mark.parametrize("sent", [b"", b"\r\n", GET, GET + b"a: "])
def test_a_head_that_is_not_finished_ends_the_connection(server: RunningServer, certificate: Path, sent: bytes) -> None:
    with encrypted(server, certificate) as connection:
        connection.sendall(sent)
        assert is_closed(connection)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (GET + b"a: b\r\n" * (MAX_FIELDS + 1), "headers_too_large"),
        (b"POST /classify HTTP/1.1\r\nHost: here\r\nContent-Length: 9\r\n\r\na", "body_timeout"),
        (b"POST /classify HTTP/1.1\r\nHost: here\r\nContent-Length: 99999999\r\n\r\n", "body_too_large"),
    ],
)
def test_limits_are_the_same_as_without(server: RunningServer, certificate: Path, sent: bytes, code: str) -> None:
    with encrypted(server, certificate) as connection:
        connection.sendall(sent)
        answer = HTTPResponse(connection)
        answer.begin()
        assert json.load(answer)["code"] == code


def test_a_connection_that_is_not_closed_by_its_client_does_not_hold_up_the_end(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tiny.write(tmp_path)
    certificate, key = written(tmp_path_factory.mktemp("tls"))
    with (
        RunningServer(tmp_path, tls_certificate=certificate, tls_key=key, drain_timeout_ms=3_600_000) as server,
        encrypted(server, certificate) as connection,
    ):
        connection.sendall(GET + b"\r\n")
        assert connection.recv(1)
        assert server.terminate() == 0


def test_grpc_shows_the_same_certificate(server: RunningServer, certificate: Path) -> None:
    trust = grpc.ssl_channel_credentials(certificate.read_bytes())
    with grpc.secure_channel(server.grpc_address, trust) as channel:
        answer = GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S)
    assert answer.live


@pytest.mark.parametrize("sent", [b"", HELLO])
def test_a_handshake_that_is_not_finished_ends_the_connection_of_grpc(server: RunningServer, sent: bytes) -> None:
    with connected(f"https://{server.grpc_address}") as connection:
        connection.sendall(sent)
        assert is_closed(connection)


def shown(address: str) -> bytes:
    """The certificate that the listener presents, trusted or not."""
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port))).encode()


@pytest.mark.parametrize("kind", [trustme.KeyType.ECDSA, trustme.KeyType.RSA])  # replacing one of ECDSA
def test_a_new_certificate_is_shown_without_a_restart_and_a_broken_one_changes_nothing(
    tmp_path: Path, kind: trustme.KeyType
) -> None:
    tiny.write(tmp_path / "repository")
    (tmp_path / "new").mkdir()
    (certificate, key), new = written(tmp_path), written(tmp_path / "new", kind)
    before, after = certificate.read_bytes(), new[0].read_bytes()
    with RunningServer(
        tmp_path / "repository", tls_certificate=certificate, tls_key=key, grpc_port=0, http_workers=2
    ) as server:
        addresses = urlsplit(server.url).netloc, server.grpc_address
        assert all(shown(address) in before for address in addresses)
        certificate.write_bytes(after)
        server.wait_for_line("the certificate stays as it was")
        server.kill_child("http-0")  # its successor shows the same as the other worker
        assert all(shown(addresses[0]) in before for _ in range(8))
        certificate.write_bytes(before)
        with encrypted(server, certificate) as old:
            certificate.write_bytes(after)
            new[1].replace(key)
            until(lambda: all(shown(address) in after for address in addresses * 4))
            old.sendall(GET + b"\r\n")
            assert old.recv(12) == b"HTTP/1.1 200"


def test_an_encrypted_or_foreign_key_is_refused_without_a_question(tmp_path: Path) -> None:
    certificate, key = written(tmp_path)
    read(certificate, key)
    (tmp_path / "other").mkdir()
    _, foreign = written(tmp_path / "other")
    with pytest.raises(TlsError, match="mismatch"):
        read(certificate, foreign)
    locked = tmp_path / "locked.pem"
    private = load_pem_private_key(key.read_bytes(), None)
    locked.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    with pytest.raises(TlsError, match="unencrypted"):
        read(certificate, locked)


def test_whatever_is_sent_to_a_port_each_line_of_the_log_is_ours(tmp_path: Path) -> None:
    tiny.write(tmp_path / "repository")
    certificate, key = written(tmp_path)
    with RunningServer(
        tmp_path / "repository", tls_certificate=certificate, tls_key=key, grpc_port=0, log_format="json"
    ) as server:
        for address in (urlsplit(server.url).netloc, server.grpc_address):
            host, _, port = address.rpartition(":")
            for sent in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01garbage", bytes(100)):
                with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
                    connection.sendall(sent)
                    connection.shutdown(socket.SHUT_WR)
                    with suppress(ConnectionError):
                        while connection.recv(4096):
                            pass  # until the server closes it
        assert server.terminate() == 0
        server.wait_for_line("the server has ended")
        assert [line for line in server.lines[:-1] if json.loads(line)["level"] not in {"info", "warning"}] == []
