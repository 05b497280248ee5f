"""A model hub on this machine: as much of the true one's protocol as downloads and refusals need."""

import hashlib
import http.server
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

COMMIT = "5f2c9d7e" * 5


class Hub(http.server.ThreadingHTTPServer):
    """Serves `folders` (repository -> folder) at COMMIT; `gated` ones to `token` alone. `asked` lists requests about models.

    `moved` (repository -> (commit, folder)) is where its main branch has gone since; COMMIT is still there.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders: dict[str, Path] = {}
        self.moved: dict[str, tuple[str, Path]] = {}
        self.gated: set[str] = set()
        self.token, self.asked, self.broken = "granted", [], False
        self.url = f"http://127.0.0.1:{self.server_port}"

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        thread = threading.Thread(target=self.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            thread.join()
            self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub = self.server
        if self.path != "/api/agent-harnesses":  # huggingface_hub wants it once a process, whichever test comes first
            hub.asked.append(f"{self.command} {self.path}")
        path = self.path.partition("?")[0]
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+)(/.+)?)?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        name, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else (None, None)
        if hub.broken:
            self._answer(500, b"")
        elif name not in hub.folders:
            self._answer(401, b"", "RepoNotFound")
        elif (revision := self._commit(name, revision)) is None:
            self._answer(404, b"", "RevisionNotFound")
        elif api and api[4]:
            self._answer(404, b"", "EntryNotFound")  # no folder within a tree is listed
        elif api:
            self._describe(name, revision, api[2])
        elif name in hub.gated and self.headers["authorization"] != f"Bearer {hub.token}":
            self._answer(403 if self.headers["authorization"] else 401, b"", "GatedRepo")
        elif not (path := self._folder(name, revision) / file[3]).is_file():
            self._answer(404, b"", "EntryNotFound", commit=revision)
        else:
            self._answer(200, path.read_bytes(), commit=revision)

    def _commit(self, name: str, revision: str | None) -> str | None:
        """The commit that a branch, or none, stands for; None where there is no such one."""
        moved = self.server.moved.get(name, (COMMIT,))[0]
        return moved if revision in (None, "main", moved) else COMMIT if revision == COMMIT else None

    def _folder(self, name: str, commit: str) -> Path:
        return self.server.folders[name] if commit == COMMIT else self.server.moved[name][1]

    def _describe(self, name: str, commit: str, what: str | None) -> None:
        root = self._folder(name, commit)
        files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        if what == "tree":
            found = [_entry(path, file.read_bytes()) for path, file in files.items()]
        else:
            found = {"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": [], "downloads": 0}
        self._answer(200, json.dumps(found).encode(), commit=commit)

    def _answer(self, status: int, body: bytes, error: str | None = None, commit: str = COMMIT) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", commit)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _entry(path: str, content: bytes) -> dict:
    """A file in a repository's tree: weights lie in git's large file storage, the rest in git."""
    entry = {"type": "file", "path": path, "size": len(content)}
    if path.endswith((".safetensors", ".bin")):
        stored = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry | {"oid": "0" * 40, "lfs": stored}
    return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


def point_to(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let huggingface_hub take `url` for the hub."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", url)  # made when huggingface_hub was imported


@contextmanager
def silence() -> Iterator[tuple[str, list[socket.socket]]]:
    """The address of a hub that takes connections and never says a word, and the connections."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def take() -> None:
            while True:
                try:
                    taken.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", taken
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()
