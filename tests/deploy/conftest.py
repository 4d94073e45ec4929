from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from r3agent.store.registry import Registry
from tests.deploy.endpoint import Endpoint, Run, save_model


@pytest.fixture
def run(tmp_path: Path) -> Run:
    base = save_model(tmp_path / "base", seed=0)
    registry = Registry(tmp_path / "run")
    registry.add_base("tiny", str(base))
    return Run(registry, base)


@pytest.fixture
def endpoint(run: Run) -> Iterator[Endpoint]:
    with serving(Endpoint(weights=run.base)) as state:
        yield state


@pytest.fixture
def replica(run: Run) -> Iterator[Endpoint]:
    with serving(Endpoint(weights=run.base)) as state:
        yield state


@contextmanager
def serving(state: Endpoint) -> Iterator[Endpoint]:

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.respond(*state.answer(self.path, {}))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if state.api_key and self.headers.get("Authorization") != f"Bearer {state.api_key}":
                return self.respond(401, {"error": "Unauthorized"})
            return self.respond(*state.answer(self.path, json.loads(body) if body else {}))

        def respond(self, status: int, body: Any) -> None:
            kinds = {bytes: "text/html", str: "text/plain"}
            data = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(status)
            self.send_header("Content-Type", kinds.get(type(body), "application/json"))
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None: ...

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            """A client that gave up waiting is part of the tests."""

    with Quiet(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield state
        state.released.set()
        server.shutdown()
