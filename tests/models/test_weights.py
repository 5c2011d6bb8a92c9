import fcntl
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from models import weights, zoo
from models.weights import MIRROR_VARIABLE, UnreachableError, WeightsError, obtain
from models.zoo import OfficialWeights, PackagedWeights

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
FILE = OfficialWeights(f"network-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth")


@dataclass
class Origin:
    """A real HTTP server with one file, and the faults that it simulates."""

    content: bytes = CONTENT
    cut_after: int | None = None
    knows_ranges: bool = True
    status: int | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    """Path and Range of each request."""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers["Range"]
        self.asked.append((handler.path, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.knows_ranges else 0
        if self.status or start >= len(self.content):
            handler.send_error(self.status or 416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(self.content) - start))
        handler.end_headers()
        handler.wfile.write(self.content[start : self.cut_after])


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
    served = Origin()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{server.server_port}/models")
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_is_whole_and_asked_of_the_mirror(origin: Origin, tmp_path: Path) -> None:
    path = obtain(FILE, tmp_path / "weights")
    assert path.read_bytes() == CONTENT
    assert files(tmp_path / "weights") == [FILE.file_name]
    assert origin.asked == [(f"/models/{FILE.file_name}", None)]


def test_second_time_needs_no_network(origin: Origin, tmp_path: Path) -> None:
    assert obtain(FILE, tmp_path) == obtain(FILE, tmp_path)
    assert len(origin.asked) == 1


def test_cut_download_is_resumed_where_it_ended(origin: Origin, tmp_path: Path) -> None:
    origin.cut_after = 2_000_000
    with pytest.raises(WeightsError, match="cut after 2000000 of 3072000 bytes: run this again"):
        obtain(FILE, tmp_path)
    assert files(tmp_path) == [FILE.file_name + ".part"]
    origin.cut_after = None
    assert obtain(FILE, tmp_path).read_bytes() == CONTENT
    assert origin.asked[-1][1] == "bytes=2000000-"
    assert files(tmp_path) == [FILE.file_name]


def test_resume_starts_over_where_the_server_knows_no_ranges(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / f"{FILE.file_name}.part").write_bytes(CONTENT[:1000])
    origin.knows_ranges = False
    assert obtain(FILE, tmp_path).read_bytes() == CONTENT


def test_download_that_lacked_only_its_name_is_finished(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / f"{FILE.file_name}.part").write_bytes(CONTENT)
    assert obtain(FILE, tmp_path).read_bytes() == CONTENT
    assert origin.asked[0][1] == f"bytes={len(CONTENT)}-"


def test_wrong_digest_leaves_nothing_behind(origin: Origin, tmp_path: Path) -> None:
    origin.content = CONTENT[:-1] + b"x"
    with pytest.raises(WeightsError, match="SHA-256"):
        obtain(FILE, tmp_path)
    assert files(tmp_path) == []


def test_damaged_file_in_the_cache_is_not_used(tmp_path: Path) -> None:
    (tmp_path / FILE.file_name).write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="delete it"):
        obtain(FILE, tmp_path)


def test_second_download_at_the_same_time_is_refused(origin: Origin, tmp_path: Path) -> None:
    with (tmp_path / f"{FILE.file_name}.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(WeightsError, match="another process"):
            obtain(FILE, tmp_path)
    assert origin.asked == []


def test_error_of_the_server_is_said(origin: Origin, tmp_path: Path) -> None:
    origin.status = 404
    with pytest.raises(UnreachableError, match=r"404 Not Found.*--weights FILE.*" + MIRROR_VARIABLE):
        obtain(FILE, tmp_path)
    assert files(tmp_path) == []


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("host", [f"127.0.0.1:{closed_port()}", "weights.invalid"], ids=["closed", "unresolvable"])
def test_unreachable_is_known_without_waiting_for_an_answer(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, f"http://{host}")
    monkeypatch.setattr(weights, "CONNECT_TIMEOUT_S", 1e6)  # no test waits for it
    with pytest.raises(UnreachableError, match="cannot be reached"):
        obtain(FILE, tmp_path)
    assert files(tmp_path) == []


def test_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UnreachableError, match="did not answer"):
            obtain(FILE, tmp_path)
    assert files(tmp_path) == []


def test_mirror_that_is_no_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "/srv/weights")
    with pytest.raises(WeightsError, match=f"correct {MIRROR_VARIABLE}"):
        obtain(FILE, tmp_path)


def test_folder_that_cannot_be_written_is_said(origin: Origin, tmp_path: Path) -> None:
    (tmp_path / "weights").touch()
    with pytest.raises(WeightsError, match="cannot store the weights"):
        obtain(FILE, tmp_path / "weights")
    assert origin.asked == []


def test_packaged_weights_have_the_promised_digest(tmp_path: Path) -> None:
    packaged = zoo.NETWORKS["efficientnet_lite0"].weights
    assert packaged is not None
    assert weights.sha256_of(obtain(packaged, tmp_path)).startswith("57934424")


def test_missing_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no_such_package is not installed: .* '\.\[export\]'"):
        obtain(PackagedWeights("no_such_package", "weights-00000000.pth"), tmp_path)
