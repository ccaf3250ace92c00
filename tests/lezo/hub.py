"""A model hub on loopback: one model's files at two revisions, and a pull request that converted them."""

import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ID = "somebody/small"
MAIN, OLDER, CONVERTED = "a" * 40, "b" * 40, "c" * 40


class Hub:
    """Serves folders by commit; ``asked`` are the paths of all requests."""

    def __init__(self, commits: dict[str, Path], names: dict[str, str], id: str = ID) -> None:
        self.commits, self.names, self.id, self.asked = commits, names, id, list[str]()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append(path)
        if f"/{self.id}" not in path:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if path.startswith(f"/{self.id}/resolve/"):
            return self._file(*self._split(path.removeprefix(f"/{self.id}/resolve/")))
        what = path.removeprefix(f"/api/models/{self.id}").strip("/")
        kind, _, revision = what.partition("/")
        commit = self._commit(revision if kind in ("revision", "tree") else "main")
        if (
            not path.startswith(f"/api/models/{self.id}")
            or kind not in ("", "revision", "tree")
            or not commit
        ):
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        names = sorted(file.name for file in self.commits[commit].iterdir())
        if kind == "tree":
            return _json([{"type": "file", "oid": "0", "size": 1, "path": name} for name in names])
        files = [{"rfilename": name} for name in names]
        return _json(
            {"_id": "0", "id": self.id, "sha": commit, "private": False, "tags": [], "siblings": files}
        )

    def _commit(self, revision: str) -> str | None:
        commit = self.names.get(revision, revision)
        return commit if commit in self.commits else None

    def _split(self, rest: str) -> tuple[str | None, str]:
        revision, _, name = rest.rpartition("/")
        return self._commit(revision), name

    def _file(self, commit: str | None, name: str) -> tuple[int, dict[str, str], bytes]:
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        head = {"X-Repo-Commit": commit}
        if not (self.commits[commit] / name).is_file():
            return 404, {**head, "X-Error-Code": "EntryNotFound"}, b""
        content = (self.commits[commit] / name).read_bytes()
        return 200, {**head, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content


def _json(content: object) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@contextmanager
def served(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Meanwhile this process takes the hub for the one there is, and keeps what it fetches in ``cache``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, head, body = hub.answer(urllib.parse.unquote(urllib.parse.urlparse(self.path).path))
            self.send_response(status)
            for key, value in {**head, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # CI goes offline for all the rest
    patch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    patch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        endpoint + "/{repo_id}/resolve/{revision}/{filename}",
    )
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    patch.setattr("huggingface_hub.hf_api.api.endpoint", endpoint)
    patch.setattr("transformers.utils.hub._hf_api", None, raising=False)  # else that of the first to ask
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
