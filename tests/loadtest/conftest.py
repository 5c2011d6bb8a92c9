import re
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rivals are installed, each once."""
    return tmp_path_factory.getbasetemp() / "environments"


@pytest.fixture(scope="session")
def server_url(model_repository: Path) -> Generator[str]:
    """A real server of efficientnet_lite0 on a free port."""
    command = [sys.executable, "-m", "server", "--port", "0", "--repository", str(model_repository)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        ready = next((found for line in process.stderr if (found := re.search(r"ready on (\S+)", line))), None)
        assert ready, "the server did not start"
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield ready[1]
        process.terminate()
