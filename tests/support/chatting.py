"""`tests/deploy/endpoint.py`, a server whose weights change, with a chat route: what a whole run needs of a server."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.deploy.endpoint import Endpoint, error

Reply = Callable[[dict[str, Any]], str]
"""The text of a completion, by the body of its request."""


@dataclass
class ChattingEndpoint(Endpoint):
    """Answers chats by a script; a model that is not loaded is answered with 404."""

    reply: Reply = lambda body: ""
    chats: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the chat requests."""
    keys: set[str | None] = field(default_factory=set)
    """`Authorization` of every request of any route."""

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        return self.chat(body) if path == "/v1/chat/completions" else super().answer(path, body)

    def chat(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.chats.append(body)
        if body["model"] not in (self.name, *self.adapters):
            return 404, error(f"The model `{body['model']}` does not exist.")
        choices = [
            {"index": i, "message": {"role": "assistant", "content": self.reply(body)}, "finish_reason": "stop"}
            for i in range(body.get("n", 1))
        ]
        return 200, {"object": "chat.completion", "model": body["model"], "choices": choices, "usage": {}}


@contextmanager
def serving(state: ChattingEndpoint) -> Iterator[ChattingEndpoint]:
    """`state` as a real server on a free port, which is in `state.url`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            self.respond({})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.respond(json.loads(body) if body else {})

        def respond(self, body: dict[str, Any]) -> None:
            state.keys.add(self.headers.get("Authorization"))
            status, said = state.answer(self.path, body)
            content = (said if isinstance(said, str) else json.dumps(said)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(said, str) else "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield state
        server.shutdown()
