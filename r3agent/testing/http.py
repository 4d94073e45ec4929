"""HTTP server of the test doubles: scripted responses to JSON, and connections that hang or drop on cue."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self, TypeAlias

from r3agent.testing.faults import TRICKLE_S, Fault, Json

Respond: TypeAlias = Callable[[str, str | None, Json | None], Fault]
"""Function from the path, Authorization header and JSON body of a request to its response."""


class JsonServer(ThreadingHTTPServer):
    """Server on 127.0.0.1 that sends the responses of `respond`; a context manager.

    Args:
        port: port to listen on; default: a free one.
    """

    daemon_threads = True  # an interpreter that exits without closing it does not wait for its clients
    request_queue_size = 256

    def __init__(self, respond: Respond, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.respond = respond
        self._open: set[socket.socket] = set()
        self._hanging = 0
        self._changed = threading.Condition()
        self._clients: set[threading.Thread] = set()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        """Address of the server, without a path."""
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def has_started(self) -> bool:
        return self._thread.ident is not None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Close all connections, including hanging ones, and wait for the threads."""
        self.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with suppress(OSError):  # the client closed it first
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        for client in list(self._clients):
            client.join()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one connection in its thread, which closing waits for."""
        self._clients.add(threading.current_thread())
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._clients.discard(threading.current_thread())

    @contextmanager
    def opened(self, connection: socket.socket) -> Generator[None, None, None]:
        self._open.add(connection)
        try:
            yield
        finally:
            self._open.discard(connection)

    @contextmanager
    def hanging(self) -> Generator[None, None, None]:
        self._count_hanging(1)
        try:
            yield
        finally:
            self._count_hanging(-1)

    def wait_for_hanging(self, n: int, timeout_s: float) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: self._hanging == n, timeout_s):
                raise TimeoutError(f"{self._hanging} clients hang after {timeout_s:g} s, not {n}")

    def _count_hanging(self, change: int) -> None:
        with self._changed:
            self._hanging += change
            self._changed.notify_all()


class _Handler(BaseHTTPRequestHandler):
    server: JsonServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the second of two would wait for an acknowledgement

    def handle(self) -> None:
        with self.server.opened(self.connection), suppress(ConnectionError):
            super().handle()

    def finish(self) -> None:
        with suppress(ConnectionError):  # the client left without its answer
            super().finish()

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}"))

    def _answer(self, body: Json | None) -> None:
        fault = self.server.respond(self.path, self.headers["Authorization"], body)
        if fault.kind == "hang":
            with self.server.hanging():
                self.connection.recv(1)  # until the client disconnects or the server closes
        self.close_connection |= fault.kind not in ("answer", "truncate")
        if fault.kind in ("drop", "hang"):
            return
        content = (fault.body or "").encode()
        half = content[: len(content) // 2]
        if fault.kind == "truncate":
            content = half
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", fault.content_type or "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault.kind == "trickle":
            with self.server.hanging():
                for i in range(len(content)):
                    self.wfile.write(content[i : i + 1])
                    self.wfile.flush()
                    time.sleep(TRICKLE_S)
        else:
            self.wfile.write(half if fault.kind == "cut" else content)

    def log_message(self, format: str, *args: object) -> None:
        pass
