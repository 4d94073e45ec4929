"""An upstream whose bytes a test writes itself: streams that wait, comments, and connections that break off."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

import httpx

HTTP = httpx.Client(verify=False, limits=httpx.Limits(max_keepalive_connections=0), timeout=60)
"""Client of all tests: making one reads the certificates each time."""

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class Request(NamedTuple):
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass
class Stub:
    """Requests so far."""

    url: str = ""
    """Base URL, ending in /v1."""
    requests: list[Request] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)
    """Set once a client has left."""


def event(delta: Any = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": None}
    choice |= {name: fields.pop(name) for name in ("finish_reason", "token_ids", "logprobs") if name in fields}
    return b"data: %s\n\n" % json.dumps({"id": "c", "model": "m", "choices": [choice], **fields}).encode()


@contextmanager
def stub(answer: Callable[[Request], Iterator[bytes]]) -> Iterator[Stub]:
    """Run an upstream that writes what `answer` yields, head included, and then closes the connection."""
    log = Stub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"null"))

        def reply(self, body: Any) -> None:
            request = Request(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            log.requests.append(request)
            self.close_connection = True
            try:
                for piece in answer(request):
                    self.wfile.write(piece)
                    self.wfile.flush()
                self.connection.settimeout(0.0)
            except OSError:
                log.gone.set()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    log.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield log
    finally:
        server.shutdown()
        thread.join()
        with suppress(OSError):
            server.server_close()


def whole(body: Any, status: str = "200 OK", **headers: str) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + content
