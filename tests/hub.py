"""A fake Hugging Face Hub on this machine, which answers huggingface_hub as the real one does.

It sends small files itself, and redirects to another address for weights.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest

TOKEN = "hf_secret"
_LARGE = (".safetensors", ".bin")


@dataclass
class Hub:
    """The repositories it holds, and the requests it got."""

    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Files by repository and commit."""
    revisions: dict[tuple[str, str], str] = field(default_factory=dict)
    """Commits by repository and branch or tag."""
    gated: set[str] = field(default_factory=set)
    """Visible to anyone; downloading their files needs TOKEN."""
    private: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    """Method and path."""
    down: bool = False
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def push(self, repository: str, files: Mapping[str, bytes] | Path, revision: str = "main") -> str:
        """Add a commit, and point a branch or tag at it."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir()}
        commits = self.commits.setdefault(repository, {})
        commit = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[commit] = dict(files)
        self.revisions[repository, revision] = commit
        return commit


@contextmanager
def running() -> Iterator[Hub]:
    hub = Hub()

    class Handler(_Handler):
        of = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT does when a process starts."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@contextmanager
def away(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide the cache and the token of the person who runs the tests."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(cache / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    try:
        yield
    finally:
        huggingface_hub.close_session()


class _Handler(BaseHTTPRequestHandler):
    of: Hub
    protocol_version = "HTTP/1.1"
    timeout = 5

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.of.requests.append(f"{self.command} {self.path}")
        if self.of.down:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
            return
        match self.path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", owner, name]:
                self._info(f"{owner}/{name}", "main")
            case ["api", "models", owner, name, "revision", revision]:
                self._info(f"{owner}/{name}", revision)
            case [owner, name, "resolve", revision, file]:
                self._file(f"{owner}/{name}", revision, file)
            case ["cdn", owner, name, commit, file]:
                self._content(self.of.commits[f"{owner}/{name}"][commit][file], {})
            case _:
                self._answer(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815 the base class's

    def _commit(self, repository: str, revision: str) -> str | None:
        """The commit, or None after a refusal."""
        known = self.of.commits.get(repository)
        if known is None or (repository in self.of.private and not self._may):
            self._answer(HTTPStatus.UNAUTHORIZED, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = revision if revision in known else self.of.revisions.get((repository, revision))
        if commit is None:
            self._answer(HTTPStatus.NOT_FOUND, {"X-Error-Code": "RevisionNotFound"})
        return commit

    @property
    def _may(self) -> bool:
        return self.headers.get("authorization") == f"Bearer {TOKEN}"

    def _info(self, repository: str, revision: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        files = [{"rfilename": name} for name in self.of.commits[repository][commit]]
        known = {"_id": "0", "id": repository, "modelId": repository, "sha": commit, "siblings": files}
        self._content(json.dumps(known).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, revision: str, file: str) -> None:
        commit = self._commit(repository, revision)
        if commit is None:
            return
        if repository in self.of.gated and not self._may:
            known = self.headers.get("authorization") is not None
            status = HTTPStatus.FORBIDDEN if known else HTTPStatus.UNAUTHORIZED
            self._answer(status, {"X-Error-Code": "GatedRepo"})
            return
        content = self.of.commits[repository][commit].get(file)
        headers = {"X-Repo-Commit": commit}
        if content is None:
            self._answer(HTTPStatus.NOT_FOUND, headers | {"X-Error-Code": "EntryNotFound"})
        elif file.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            linked = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            there = {"Location": f"http://localhost:{self.of.port}/cdn/{repository}/{commit}/{file}"}  # another host
            self._answer(HTTPStatus.FOUND, headers | linked | there)
        else:
            self._content(content, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def _content(self, content: bytes, headers: Mapping[str, str]) -> None:
        self._answer(HTTPStatus.OK, headers, content)

    def _answer(self, status: HTTPStatus, headers: Mapping[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
