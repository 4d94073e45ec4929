"""A server behind a gateway: it records the path and headers of every request, and may refuse some."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

MESSAGE = {"role": "assistant", "content": "42"}
COMPLETION = {"id": "c", "model": "m", "choices": [{"index": 0, "message": MESSAGE, "finish_reason": "stop"}]}


class Seen(NamedTuple):
    """One request as it arrived."""

    path: str
    headers: Mapping[str, str]


@dataclass
class Gateway:
    """Requests so far, and the error in place of the next completions."""

    url: str = ""
    """Address without a path."""
    seen: list[Seen] = field(default_factory=list)
    error: Any = None
    status: int = 400
    """Status of the errors."""

    @property
    def last(self) -> Seen:
        return self.seen[-1]


@contextmanager
def gateway() -> Iterator[Gateway]:
    """A running gateway."""
    log = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply({"data": [{"id": "m"}]} if "/models" in self.path else {"weight_version": "v0003"})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"] or 0))
            self.reply(COMPLETION if log.error is None else log.error, 200 if log.error is None else log.status)

        def reply(self, body: Any, status: int = 200) -> None:
            log.seen.append(Seen(self.path, {name.lower(): value for name, value in self.headers.items()}))
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    log.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield log
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
