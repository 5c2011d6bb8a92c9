"""SIGHUP makes the server read its files again; an ignored SIGHUP stays ignored."""

import os
import signal
from pathlib import Path

from tests import tiny
from tests.server.running import RunningServer, red_image, top1, until


def test_sighup_has_everything_read_again_and_ends_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository)
    keys = tmp_path / "keys.txt"
    keys.write_text(f"known {'0' * 64}")
    with RunningServer(repository, reload_ms=0, api_keys=keys, metrics_role="none") as server:
        pids = {name: server.pid(name) for name in ("engine", "http-0")}
        tiny.publish(repository, 2)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_line("serving tiny version 1, tiny version 2")
        server.wait_for_line("API keys: known")  # unchanged
        assert {name: server.pid(name) for name in pids} == pids
        assert server.terminate() == 0


def test_sighup_has_what_was_refused_tried_again(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    model = tmp_path / "b" / "1" / "model.onnx"
    content = model.read_bytes()
    model.write_bytes(b"damaged")
    with RunningServer(tmp_path, reload_ms=0, default_model="a") as server:
        assert server.classify(red_image(7), model="b").status_code == 404
        model.write_bytes(content)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.classify(red_image(7), model="b").status_code == 200)


def test_an_ignored_sighup_stays_ignored(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does for its command
    try:
        server = RunningServer(tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    with server:
        status = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
        (ignored,) = (int(line.split()[1], 16) for line in status if line.startswith("SigIgn:"))
        assert ignored & 1 << signal.SIGHUP - 1
        os.kill(server.process.pid, signal.SIGHUP)
        assert top1(server.classify(red_image(7))) == 7
        assert server.terminate() == 0
    assert not [line for line in server.lines if "SIGHUP" in line]
