"""The check that tells a container engine whether the server can answer requests."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

from tests import tiny
from tests.server.running import ROOT, RunningServer, until


def healthcheck(*port: int, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-IS", str(ROOT / "deploy" / "healthcheck.py"), *map(str, port)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert not done.stderr
    return done.returncode, done.stdout.strip()


def test_healthy_is_ready_and_draining_is_not(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    with RunningServer(tmp_path, drain_delay_ms=600_000) as server:
        port = urlsplit(server.url).port or 0
        assert healthcheck(port) == healthcheck(SERVER_PORT=str(port)) == (0, "ok")
        server.process.terminate()
        until(lambda: server.client.get("/readyz").status_code == 503)
        status, reason = healthcheck(port)
        assert status == 1
        assert reason == server.client.get("/readyz").text


def test_no_server_is_unhealthy() -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        status, reason = healthcheck(unheard.getsockname()[1])
    assert status == 1
    assert "ConnectionRefusedError" in reason
