import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from loadtest import processes
from loadtest.compare import environments
from tests import tiny


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI, as a rival, runs in this environment, which has all that it needs."""
    monkeypatch.setattr(environments, "ensure", lambda _: Path(sys.executable).parent)


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A real server on a free port, with a model that costs next to nothing."""
    repository = tmp_path_factory.mktemp("served")
    tiny.write(repository)
    with processes.serve("--repository", str(repository), "--http-workers", "1", quiet=True) as server:
        yield server.url
