"""A small hub: the routes by which its client lists, looks at and reads the files of data sets and buckets, over files in memory."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 3
"""Entries a page, few enough that listings have several."""


@dataclass
class Hub:
    """Repositories and buckets by kind and name, each revision with its files."""

    files: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    """By ("datasets/ORG/NAME" or "buckets/ORG/NAME", revision; "" for buckets)."""
    requests: list[str] = field(default_factory=list)
    busy: int = 0
    """Requests to answer with 503."""
    token: str = ""
    """Token that all requests must have."""
    url: str = ""

    def push(self, repository: str, files: dict[str, bytes | None], revision: str = "main") -> str:
        """Change files, remove those that are None, and return the commit."""
        changed = {**self.files.get((repository, revision), {}), **files}
        kept = {path: data for path, data in changed.items() if data is not None}
        commit = hashlib.sha1(repr(sorted(kept.items())).encode()).hexdigest()
        self.files[repository, revision] = self.files[repository, commit] = kept
        return commit

    def commit(self, repository: str, revision: str) -> str | None:
        """Return the commit that a revision names."""
        files = self.files.get((repository, revision))
        return None if files is None else hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one packet an answer: the client otherwise waits 40 ms for the second

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self._answer(json.loads(body) if body.startswith("{") else parse_qs(body))

    def _answer(self, form: dict[str, Any]) -> None:
        split = urlsplit(self.path)
        self.hub.requests.append(f"{self.command} {unquote(split.path)}")
        if self.hub.busy > 0:
            self.hub.busy -= 1
            return self._send(503, b"busy")
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        is_api = parts[0] == "api"
        kind, *names = parts[1:] if is_api else parts
        repository, rest = "/".join([kind, *names[:2]]), names[2:]
        if not any(name == repository for name, _ in self.hub.files):
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        verb, *rest = rest or ["info"]
        revision = "" if kind == "buckets" else rest[0] if rest else "main"
        path = "/".join(rest if kind == "buckets" else rest[1:])
        files = self.hub.files.get((repository, revision))
        if files is None:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if verb in ("info", "revision"):
            moment = "2026-01-01T00:00:00.000Z"
            info = {"id": "/".join(names[:2]), "sha": self.hub.commit(repository, revision), "siblings": [], "private": False}
            return self._json(info | {"createdAt": moment, "size": 0, "totalFiles": len(files), "tags": [], "downloads": 0, "likes": 0})
        if verb == "tree":
            return self._list(files, path, parse_qs(split.query), split.path)
        if verb == "paths-info":
            wanted = form["paths"] if isinstance(form["paths"], list) else [form["paths"]]
            return self._json([_describe(each, files) for each in wanted if each in files or _is_folder(each, files)])
        return self._read(files, path)

    def _list(self, files: dict[str, bytes], folder: str, query: dict[str, list[str]], url: str) -> None:
        below = [path for path in files if path == folder or path.startswith(f"{folder}/" if folder else "")]
        if folder and not below:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if query.get("recursive", ["false"])[0].lower() != "true":
            start = len(folder) + 1 if folder else 0
            below = list(dict.fromkeys(path[:start] + path[start:].partition("/")[0] for path in below))
        first = int(query.get("cursor", ["0"])[0])
        following = f"{self.hub.url}{url}?cursor={first + PAGE}&recursive={query.get('recursive', ['false'])[0]}"
        link = {"Link": f'<{following}>; rel="next"'} if first + PAGE < len(below) else {}
        return self._json([_describe(path, files) for path in sorted(below)[first : first + PAGE]], link)

    def _read(self, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        data, span = files[path], self.headers.get("Range")
        if span is None:
            return self._send(200, data)
        first, _, last = span.removeprefix("bytes=").partition("-")
        return self._send(206, data[int(first) : int(last) + 1])

    def _json(self, found: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(found).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _is_folder(path: str, files: dict[str, bytes]) -> bool:
    return any(each.startswith(f"{path}/") for each in files)


def _describe(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    commit = {"id": "0" * 40, "title": "a commit", "date": "2026-01-01T00:00:00.000Z"}
    if path not in files:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0, "lastCommit": commit}
    digest = hashlib.sha1(files[path]).hexdigest()
    return {"type": "file", "path": path, "size": len(files[path]), "oid": digest, "xetHash": digest, "lastCommit": commit}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Serve a hub without files on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
