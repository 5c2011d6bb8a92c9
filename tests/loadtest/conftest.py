from collections.abc import Generator
from pathlib import Path

import pytest

from loadtest import processes


@pytest.fixture(scope="session")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where rivals are installed, each once."""
    return tmp_path_factory.getbasetemp() / "environments"


@pytest.fixture(scope="session")
def server_url(model_repository: Path) -> Generator[str]:
    """A real server of efficientnet_lite0 on a free port."""
    with processes.serve("--repository", str(model_repository), quiet=True) as server:
        yield server.url
