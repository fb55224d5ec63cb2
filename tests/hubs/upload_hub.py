"""A real HTTP server on loopback that takes datasets as huggingface.co does: repositories, large files, commits.

    with upload_hub() as hub:
        ... publish to hub.endpoint with hub.token ...
        assert hub.repos["me/cats"].files["README.md"] == b"..."

It checks what the real one checks: the token, the hash and size of large files, the parent commit, the commit's JSON.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "UploadToken" * 3
LARGE = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass
class Repo:
    """One dataset repository: its files by path, and its commits with their messages, newest last."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=lambda: ["initial commit"])

    @property
    def head(self) -> str:
        return hashlib.sha1(f"{len(self.commits)}{sorted(self.files)}".encode()).hexdigest()


@dataclass
class UploadHub:
    """What the server holds and what it was asked.

    `faults`: part of a path -> status that it answers with there. `elsewhere`: where it wants large files. `slow`: large
    files are answered once it is set. `meddles`: somebody else commits while they are sent.
    """

    token: str = TOKEN
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str, str]] = field(default_factory=list)
    faults: dict[str, int] = field(default_factory=dict)
    elsewhere: str = ""
    slow: threading.Event | None = None
    meddles: bool = False
    port: int = 0

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextlib.contextmanager
def upload_hub() -> Iterator[UploadHub]:
    """Runs the server until the end of the block."""
    hub = UploadHub()
    server = _Server(hub)
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.slow is not None:
            hub.slow.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub: UploadHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, *_: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = self.path.partition("?")[0]
        authorization = self.headers.get("Authorization", "")
        hub.seen.append((method, path, authorization))
        for part, status in hub.faults.items():
            if part in path:
                return self._send({"error": f"Fault {status}"}, status)
        if path.startswith("/blobs/"):
            return self._blob(path.removeprefix("/blobs/"), body)
        if authorization != f"Bearer {hub.token}":
            return self._send({"error": "Invalid username or password."}, 401)
        if path == "/api/validate-yaml":
            return self._send({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if found := re.fullmatch(r"/datasets/(.+?)\.git/info/lfs/objects/batch", path):
            return self._batch(json.loads(body))
        if found := re.fullmatch(
            r"/api/datasets/([^/]+/[^/]+)(?:/(preupload|commit|revision|revision/main)(?:/main)?)?", path
        ):
            repo = hub.repos.get(found[1])
            if repo is None:
                headers = [("X-Error-Code", "RepoNotFound")]
                return self._send({"error": "Repository not found"}, 404, headers)
            if method == "GET":
                siblings = [{"rfilename": name} for name in [".gitattributes", *repo.files]]
                return self._send({"id": found[1], "sha": repo.head, "private": repo.private, "siblings": siblings})
            if found[2] == "preupload":
                return self._preupload(json.loads(body))
            return self._commit(found[1], repo, body)
        return self._send({"error": "Not found"}, 404)

    def _create(self, order: dict[str, Any]) -> None:
        name = f"{order.get('organization') or 'me'}/{order['name']}"
        if order.get("type") != "dataset":
            return self._send({"error": "wrong type"}, 400)
        if name in self.server.hub.repos:
            return self._send({"error": "You already created this dataset repo"}, 409)
        self.server.hub.repos[name] = Repo(private=order.get("visibility") == "private" or bool(order.get("private")))
        return self._send({"url": f"{self.server.hub.endpoint}/datasets/{name}", "name": name})

    def _preupload(self, order: dict[str, Any]) -> None:
        files = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].lower().endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for one in order["files"]
        ]
        return self._send({"files": files})

    def _batch(self, order: dict[str, Any]) -> None:
        hub = self.server.hub
        if hub.meddles:
            for repo in hub.repos.values():
                repo.commits.append("by somebody else")
        objects = []
        for one in order["objects"]:
            where = hub.elsewhere or hub.endpoint
            objects.append({"oid": one["oid"], "size": one["size"]})
            if one["oid"] not in hub.blobs:
                objects[-1]["actions"] = {"upload": {"href": f"{where}/blobs/{one['oid']}"}}
        return self._send({"transfer": "basic", "objects": objects})

    def _blob(self, oid: str, body: bytes) -> None:
        hub = self.server.hub
        if hub.slow is not None:
            hub.slow.wait(60)
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send({"error": "wrong content"}, 400)
        hub.blobs[oid] = body
        return self._send({})

    def _commit(self, name: str, repo: Repo, body: bytes) -> None:
        hub = self.server.hub
        entries = [json.loads(line) for line in body.splitlines() if line.strip()]
        header = next(entry["value"] for entry in entries if entry["key"] == "header")
        if header.get("parentCommit") not in (None, repo.head):
            return self._send({"error": "A commit has happened since."}, 412)
        files = dict(repo.files)
        for entry in entries:
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in hub.blobs or len(hub.blobs[value["oid"]]) != value["size"]:
                    return self._send({"error": "large file is missing"}, 400)
                files[value["path"]] = hub.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                files.pop(value["path"])
        repo.files = files
        repo.commits.append(header["summary"])
        return self._send({"commitOid": repo.head, "commitUrl": f"{hub.endpoint}/datasets/{name}/commit/{repo.head}"})

    def _send(self, value: Any, status: int = 200, headers: list[tuple[str, str]] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for key, text in [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *(headers or [])]:
            self.send_header(key, text)
        self.end_headers()
        self.wfile.write(body)
