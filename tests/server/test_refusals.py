"""Models that cannot be served for now are served again without anybody's help, in real processes."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from models.manifest import ManifestError, UnreadableError
from server.engine.backends import BackendMissingError
from server.refusals import Cause, Refusal
from tests import tiny
from tests.server.running import RunningServer, red_image, top1, until


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (ManifestError("its SHA-256 is not the manifest's"), Cause.NEVER),
        (BackendMissingError("model a needs openvino, which is not installed here"), Cause.NEVER),
        (RuntimeError("[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model failed"), Cause.NEVER),
        (UnreadableError("model.onnx: No such file or directory"), Cause.NOT_NOW),
        (OSError(errno.EIO, "Input/output error"), Cause.NOT_NOW),
        (MemoryError(), Cause.NOT_NOW),
        (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"), Cause.NOT_NOW),
        (RuntimeError("Failed to allocate memory for requested buffer of size 4096"), Cause.NOT_NOW),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), Cause.NOT_NOW),
        (RuntimeError("CUDA failure 46: all CUDA-capable devices are busy or unavailable"), Cause.NOT_NOW),
        (RuntimeError("can't start new thread"), Cause.NOT_NOW),
    ],
)
def test_an_error_tells_whether_it_may_pass(error: Exception, cause: Cause) -> None:
    refusal = Refusal.of(error)
    assert refusal.cause is cause
    assert refusal.reason


@contextmanager
def away(path: Path, instead: str) -> Iterator[None]:
    """Until the block ends, make a file unreadable, even for root."""
    kept = path.rename(path.parent / "kept")
    if instead == "folder":
        path.mkdir()
    elif instead == "loop":
        path.symlink_to(path.name)
    yield
    if instead == "folder":
        path.rmdir()
    elif instead == "loop":
        path.unlink()
    kept.rename(path)


@pytest.mark.parametrize("instead", ["nothing", "folder", "loop"])
def test_a_model_that_cannot_be_read_while_an_engine_starts_is_served_again_by_itself(
    tmp_path: Path, instead: str
) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, reload_ms=0) as server:
        with away(tmp_path / "tiny" / "1" / "model.onnx", instead):
            server.kill_child("engine")
            until(lambda: server.client.get("/readyz").status_code == 503)
            refused = server.classify(red_image(7))
            assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
            assert refused.headers["retry-after"]
            assert "tiny" in server.client.get("/readyz").text
            assert server.client.get("/livez").status_code == 200
            assert server.metric("serving_refused_models", cause="not_now") == 1
            server.wait_for_line("tiny version 1 is refused for now")
            start = len(server.lines)
            server.wait_for_line("tiny version 1 is refused for now", start)  # tried again
        until(lambda: server.client.get("/readyz").status_code == 200)
        assert top1(server.classify(red_image(7))) == 7
        assert server.metric("serving_refused_models") == 0


class StartingServer(RunningServer):
    waits = False


@pytest.mark.parametrize("what", ["tiny/1/model.onnx", "."], ids=["the model", "the repository"])
def test_a_server_whose_only_model_cannot_be_read_when_it_starts_serves_it_once_it_can(
    tmp_path: Path, what: str
) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    with ExitStack() as unreadable:
        unreadable.enter_context(away(repository / what, "loop"))
        with StartingServer(repository, reload_ms=100) as server:
            url = server.wait_for_line(r"listening on (\S+), and not ready: .*Too many levels of symbolic links")[1]
            assert httpx.get(f"{url}/livez").status_code == 200
            assert httpx.get(f"{url}/readyz").status_code == 503
            refused = httpx.post(f"{url}/classify", content=red_image(7))
            assert (refused.status_code, refused.json()["code"]) == (503, "model_unavailable")
            assert refused.headers["retry-after"]
            unreadable.close()
            server.wait_until_ready()
            assert server.url == url
            assert top1(server.classify(red_image(7))) == 7
            assert server.client.get("/readyz").status_code == 200


def test_a_damaged_model_stays_refused_until_it_changes_and_the_server_is_not_ready(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    with RunningServer(tmp_path, reload_ms=100) as server:
        contents = {name: (tmp_path / name / "1" / "model.onnx").read_bytes() for name in "ab"}
        for name in "ab":
            (tmp_path / name / "1" / "model.onnx").write_bytes(b"damaged")
        server.wait_for_line("model.onnx of b version 1 was changed in place")
        assert top1(server.classify(red_image(7), model="a")) == 7
        server.kill_child("engine")
        until(lambda: server.client.get("/readyz").text == "no model is served; GET /models says why")
        assert server.classify(red_image(7), model="a").json()["code"] == "unknown_model"
        assert server.metric("serving_refused_models", cause="never") == 2
        (tmp_path / "a" / "1" / "model.onnx").write_bytes(contents["a"])
        until(lambda: server.client.get("/readyz").status_code == 200)
        assert top1(server.classify(red_image(7), model="a")) == 7


@pytest.mark.parametrize("instead", ["nothing", "loop"])
def test_a_manifest_that_cannot_be_read_for_a_moment_is_not_noticed(tmp_path: Path, instead: str) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    with RunningServer(tmp_path, reload_ms=50) as server:
        with away(tmp_path / "b" / "1" / "manifest.json", instead):
            until(lambda: server.metric("serving_refused_models", cause="not_now") == 1)
            assert top1(server.classify(red_image(7), model="b")) == 7
            server.kill_child("engine")
            assert top1(server.classify(red_image(8), model="b")) == 8
        until(lambda: server.metric("serving_refused_models") == 0)


def test_a_repository_that_is_away_for_a_moment_is_found_again(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    with RunningServer(repository, reload_ms=100) as server:
        repository.rename(tmp_path / "elsewhere")
        server.wait_for_line("cannot be served")
        assert top1(server.classify(red_image(7))) == 7
        server.kill_child("engine")
        until(lambda: server.classify(red_image(7)).status_code == 503)
        (tmp_path / "elsewhere").rename(repository)
        until(lambda: server.classify(red_image(7)).status_code == 200)
        tiny.publish(repository, 2)
        until(lambda: server.classify(red_image(7)).json()["version"] == 2)
