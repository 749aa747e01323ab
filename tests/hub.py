"""A fake of a hub of models: the part of the Hugging Face Hub's HTTP API that is used here.

Written from its documentation. It keeps files in memory, sends what is large through a redirect to a second
address, as the hub does, and breaks connections when told to.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_RANGE = re.compile(r"bytes=(\d+)-")


@dataclass
class FakeHub:
    """What it has, what it is to do, and what it was asked.

    Attributes:
        files: the content of each file, by repository and path.
        token: with it only those who show it are let in.
        gated: repositories whose conditions nobody has accepted.
        breaks: for each of the next downloads, after how many bytes of it the connection ends.
        lies: for some files another SHA-256 than they have.
        status: what it answers to everything instead.
        listing: what it answers instead of a list of files.
        page: how many files a page of a list has.
        etag: what stands before the tags of all contents; another one is another content.
        ranges: whether it can send a part of a file.
        stalls: with it a download that breaks waits there, until this is set.
        requests: path and headers of each.
    """

    address: str = ""
    store: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    gated: set[str] = field(default_factory=set)
    breaks: list[int] = field(default_factory=list)
    lies: dict[str, str] = field(default_factory=dict)
    status: int | None = None
    listing: bytes | None = None
    page: int = 1000
    etag: str = ""
    ranges: bool = True
    stalls: threading.Event | None = None
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def sent(self, start: str) -> list[dict[str, str]]:
        """The headers of the requests whose path begins so."""
        return [headers for path, headers in self.requests if path.startswith(start)]

    def sha256(self, repository: str, path: str) -> str:
        return self.lies.get(path) or hashlib.sha256(self.files[repository][path]).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""

    def do_GET(self) -> None:
        hub, parts = self.hub, urlsplit(self.path)
        path = unquote(parts.path)
        hub.requests.append((self.path, dict(self.headers)))
        if hub.status is not None:
            self._refuse(hub.status)
        elif path.startswith("/store/"):
            owner, name, file = path.removeprefix("/store/").split("/", 2)
            self._content(f"{owner}/{name}", file)
        elif path == "/api/models":
            self._json([{"id": name} for name in hub.files])
        elif found := _TREE.fullmatch(path):
            if self._lets_in(found[1]):
                self._tree(found[1], int(parse_qs(parts.query).get("cursor", ["0"])[0]))
        elif found := _RESOLVE.fullmatch(path):
            if self._lets_in(found[1], found[3]):
                self._redirect(found[1], found[3])
        else:
            self._refuse(404)

    def _lets_in(self, repository: str, file: str | None = None) -> bool:
        hub = self.hub
        if repository in hub.gated:
            self._refuse(403, "GatedRepo")
        elif hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401)
        elif repository not in hub.files:
            self._refuse(404, "RepoNotFound")
        elif file is not None and file not in hub.files[repository]:
            self._refuse(404, "EntryNotFound")
        else:
            return True
        return False

    def _tree(self, repository: str, start: int) -> None:
        entries: list[dict[str, object]] = [
            {"type": "directory", "oid": "0" * 40, "size": 0, "path": "folder"}
        ]
        for path, content in self.hub.files[repository].items():
            entry: dict[str, object] = {"type": "file", "oid": "0" * 40, "size": len(content), "path": path}
            if path.lower().endswith(".gguf"):
                lfs = {"oid": self.hub.sha256(repository, path), "size": len(content), "pointerSize": 134}
                entry["lfs"] = lfs
            entries.append(entry)
        end = start + self.hub.page
        more = {}
        if end < len(entries):
            url = f"{self.hub.address}/api/models/{repository}/tree/main?recursive=true&cursor={end}"
            more["Link"] = f'<{url}>; rel="next"'
        self._json(entries[start:end], more)

    def _redirect(self, repository: str, path: str) -> None:
        self.send_response(302)
        self.send_header("Location", f"{self.hub.store}/store/{repository}/{path}")
        self.send_header("X-Linked-Etag", f'"{self.hub.sha256(repository, path)}"')
        self.send_header("X-Linked-Size", str(len(self.hub.files[repository][path])))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _content(self, repository: str, path: str) -> None:
        hub, content, start = self.hub, self.hub.files[repository][path], 0
        tag = f'"{hub.etag}{hashlib.sha256(content).hexdigest()[:8]}"'
        asked = _RANGE.fullmatch(self.headers.get("Range", "")) if hub.ranges else None
        if asked and self.headers.get("If-Range", tag) == tag:
            start = int(asked[1])
            if start >= len(content):
                self._refuse(416, more={"Content-Range": f"bytes */{len(content)}"})
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        end = start + hub.breaks.pop(0) if hub.breaks else len(content)
        self.wfile.write(content[start:end])
        if end < len(content) and hub.stalls is not None:
            hub.stalls.wait(60)
        self.close_connection = True

    def _json(self, value: object, more: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode() if self.hub.listing is None else self.hub.listing
        self.send_response(200)
        for name, text in (more or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _refuse(self, status: int, code: str = "", more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, text in {"X-Error-Code": code, "Content-Length": "0", **(more or {})}.items():
            if text:
                self.send_header(name, text)
        self.end_headers()


@contextmanager
def open_hub() -> Iterator[FakeHub]:
    """A hub that listens on this machine, at two addresses: its own, and that of its contents."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    hub.address, hub.store = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
