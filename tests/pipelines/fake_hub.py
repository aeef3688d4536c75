"""A model hub on this machine: one repository, and what was asked of it."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" + 34 * "0"


@dataclass
class FakeHub:
    """The repository "owner/name" with the files of a directory.

    Attributes:
        root: the directory.
        downloaded: names of the files that were fetched, in order.
        breaks_off_at: a file whose download breaks off in the middle.
    """

    root: Path
    downloaded: list[str] = field(default_factory=list)
    breaks_off_at: str | None = None

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path.startswith("/api/models/owner/name/tree/"):
            entries = [
                {"type": "file", "path": n, "oid": n, "size": (self.root / n).stat().st_size} for n in self.names()
            ]
            self._send(request, json.dumps(entries).encode(), {})
        elif path.startswith("/api/models/owner/name"):
            siblings = [{"rfilename": name} for name in self.names()]
            self._send(request, json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode(), {})
        elif path.startswith("/owner/name/resolve/"):
            name = path.split("/", 5)[5]
            if request.command == "GET":
                self.downloaded.append(name)
            etag = f'"{name.replace("/", "-")}"'
            headers = {"ETag": etag, "X-Repo-Commit": COMMIT}
            self._send(request, (self.root / name).read_bytes(), headers, cut=name == self.breaks_off_at)
        else:
            request.send_error(404)

    def _send(
        self, request: http.server.BaseHTTPRequestHandler, body: bytes, headers: dict[str, str], cut: bool = False
    ) -> None:
        request.send_response(200)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body[: len(body) // 2] if cut else body)
        request.close_connection = cut


@contextmanager
def serve(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The hub that this process asks, with its own cache; afterwards no hub answers, but the cache stays."""
    hub = FakeHub(root)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        huggingface_hub.close_session()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
