"""A Hugging Face Hub on 127.0.0.1: the routes that making a model repository and a commit to it take.

Weights go to a storage of their own, by the LFS protocol; what was uploaded there stays if the commit fails.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    token: str
    url: str = ""
    private: dict[str, bool] = field(default_factory=dict)
    """Repositories, each private or not."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Files of the last commit."""
    storage: dict[str, bytes] = field(default_factory=dict)
    """Large files by their SHA-256."""
    uploads: list[str] = field(default_factory=list)
    """Large files in the order of their uploads."""
    refuses: dict[str, int] = field(default_factory=dict)
    """Last parts of routes, each with the status that refuses it; 0 is an answer cut in half."""

    def respond(self, method: str, path: str, authorization: str | None, body: bytes) -> tuple[int, Any]:
        routes = ("create", "preupload", "commit", "validate-yaml", "tree", "whoami", "batch", "storage", "verify")
        route = next((part for part in routes if part in path), "info")
        if route == "storage":  # its URL is signed, and needs no token
            return self._store(path.rpartition("/")[2], body)
        if authorization != f"Bearer {self.token}":
            return 401, {"error": "Invalid credentials"}
        if status := self.refuses.get(route, 0):
            return status, {"error": f"refused: {route}"}
        if route == "whoami":
            return 200, {"type": "user", "name": "someone"}
        if route == "batch":
            return 200, {"transfer": "basic", "objects": [self._action(o) for o in json.loads(body)["objects"]]}
        if route == "verify":
            return (200 if json.loads(body)["oid"] in self.storage else 404), {}
        name = "/".join(path.split("?")[0].split("/")[3:5])
        if route == "create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.private:
                return 409, {"error": "You already created this model repo"}
            self.private[name] = asked.get("visibility") == "private" or asked.get("private") is True
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if route == "validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if name not in self.private:
            return 404, {"error": "Repository not found"}
        if route == "info":
            return 200, {"id": name, "private": self.private[name], "siblings": [], "tags": []}
        if route == "tree":
            return 200, [{"type": "file", "path": path, "size": 1, "oid": "0" * 40} for path in self.files]
        if route == "preupload":
            asked = json.loads(body)["files"]
            modes = {f["path"]: "lfs" if f["path"].endswith(".safetensors") else "regular" for f in asked}
            return 200, {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                self.files[line["value"]["path"]] = self.storage[line["value"]["oid"]]
            elif line["key"] == "deletedFile":
                del self.files[line["value"]["path"]]
        return 200, {"commitUrl": f"{self.url}/{name}/commit/{'c' * 40}", "commitOid": "c" * 40, "success": True}

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Say where to upload a large file, unless it is stored."""
        if asked["oid"] in self.storage:
            return asked
        places = {"upload": f"{self.url}/storage/{asked['oid']}", "verify": f"{self.url}/verify"}
        return {**asked, "actions": {name: {"href": href} for name, href in places.items()}}

    def _store(self, oid: str, body: bytes) -> tuple[int, Any]:
        if status := self.refuses.get("storage", 0):
            return status, {"error": "the signature has expired"}
        assert hashlib.sha256(body).hexdigest() == oid
        self.storage[oid] = body
        self.uploads.append(oid)
        return 200, {}


@contextmanager
def serving(hub: FakeHub) -> Generator[FakeHub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self._body()
            status, answer = hub.respond(self.command, self.path, self.headers["Authorization"], body)
            content = json.dumps(answer).encode()
            if any(part in self.path and not refusal for part, refusal in hub.refuses.items()):
                content = content[: len(content) // 2]
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts: list[bytes] = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
