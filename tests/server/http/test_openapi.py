"""The OpenAPI document is true: what it describes is what a client gets, whatever that client sends."""

import subprocess
import sys
from pathlib import Path

from tests import tiny
from tests.server.running import RunningServer

EXAMPLES = 40
FEWER = 5
"""For each operation of the protocols of others, which have tests of their own."""


def test_no_request_makes_the_server_contradict_its_document(tmp_path: Path) -> None:
    tiny.write(tmp_path / "models")
    # That a client gives an image one millisecond, and gets 504 for it, is no error of the server.
    expected = 'not_a_server_error.expected-statuses = ["2xx", "4xx", "503", "504"]'
    fewer = f'[[operations]]\ninclude-tag = ["v1", "v2", "huggingface"]\ngeneration.max-examples = {FEWER}'
    (tmp_path / "schemathesis.toml").write_text(f"[checks]\n{expected}\n{fewer}\n")
    with RunningServer(tmp_path / "models") as server:
        schemathesis = Path(sys.executable).with_name("schemathesis")
        command = [
            str(schemathesis),
            "run",
            f"{server.url}/openapi.json",
            "--max-examples",
            str(EXAMPLES),
            "--seed",
            "1",
        ]
        # No schema can say that a string of bytes is an image: that it is refused is no contradiction.
        # A client that gives the server a millisecond gets a 504: errors of the server's own are looked for in its log.
        command += ["--exclude-checks", "positive_data_acceptance,not_a_server_error"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        assert not [line for line in server.lines if "ERROR" in line or "Traceback" in line]
        assert "classify" in server.client.get("/openapi.json").text
