"""The file that says where a ready server listens."""

import json
import os
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests import tiny
from tests.server.running import RunningServer, red_image, run_server, top1, until


def test_it_is_there_while_the_server_is_ready_and_names_its_newest_processes(tmp_path: Path) -> None:
    tiny.write(tmp_path / "repository")
    path = tmp_path / "ready.json"

    def content() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found

    def successor(name: str, pid: int) -> bool:
        newest: int = content()["processes"].get(name, pid)
        return newest != pid

    with RunningServer(tmp_path / "repository", ready_file=path, grpc_port=0, http_workers=2) as server:
        until(path.exists)
        found = content()
        assert httpx.get(f"{found['url']}/readyz").status_code == 200
        assert (found["url"], found["grpc"]) == (server.url, server.grpc_address)
        assert found["pid"] == server.process.pid
        assert set(found["processes"]) == {"engine", "http-0", "http-1"}
        for name, pid in found["processes"].items():
            psutil.Process(pid).kill()
            until(lambda name=name, pid=pid: successor(name, pid))  # type: ignore[misc]
            assert content()["processes"][name] in {process.pid for process in server.tree()}
        assert server.terminate() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["repository"]


def test_a_volume_that_hangs_keeps_nobody_from_anything_else(tmp_path: Path) -> None:
    tiny.write(tmp_path / "repository")
    with RunningServer(tmp_path / "repository", ready_file=tmp_path / "ready.json") as server:
        old, lines = server.pid("engine"), len(server.lines)
        os.mkfifo(tmp_path / "ready.json.new")  # opening it blocks until there is a reader
        psutil.Process(old).kill()
        server.wait_for_line("engine is ready", lines)
        assert server.pid("engine") == old  # the file was not updated
        assert top1(server.classify(red_image(7))) == 7
        assert server.terminate() == 0


def test_what_a_killed_server_has_left_is_gone_before_the_next_is_ready(tmp_path: Path) -> None:
    path = tmp_path / "ready.json"
    path.write_text("{}")
    code, _ = run_server("--repository", tmp_path, "--ready-file", path)  # there is no model
    assert (code, path.exists()) == (1, True)
    tiny.write(tmp_path)
    (tmp_path / "tiny/1/model.onnx").write_bytes(b"not a model")
    code, _ = run_server("--repository", tmp_path, "--port", "0", "--ready-file", path)
    assert (code, path.exists()) == (1, False)


@pytest.mark.parametrize("where", ["nowhere/ready.json", "."])
def test_a_file_that_cannot_be_written_is_one_line(where: str, tmp_path: Path) -> None:
    tiny.write(tmp_path)
    code, output = run_server("--repository", tmp_path, "--port", "0", "--ready-file", tmp_path / where)
    assert code == 1
    assert output.startswith(f"python -m server: --ready-file {(tmp_path / where)}: ")
    assert len(output.splitlines()) == 1
