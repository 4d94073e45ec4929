"""Ways to a server: a proxy with a password, and TLS with a certificate of one's own."""

from __future__ import annotations

import asyncio
import base64
import ssl
import subprocess
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from r3agent.testing import ScriptedEndpoint

PASSWORD = "open-sesame"


class Proxy:
    """Proxy of HTTP requests that asks for a password."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._handle, "127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self._server.sockets[0].getsockname()[1]  # noqa: UP031
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://me:{PASSWORD}@{self.address}"

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            line, _, headers = head.partition(b"\r\n")
            method, target, _ = line.decode().split()
            url = httpx.URL(target)
            self.asked.append(url.path)
            wanted = base64.b64encode(f"me:{PASSWORD}".encode())
            if wanted not in headers:
                writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return
            length = int(httpx.Headers(_pairs(headers)).get("content-length", 0))
            content = await reader.readexactly(length)
            up_reader, up_writer = await asyncio.open_connection(url.host, url.port)
            rest = b"Connection: close\r\n" + headers.replace(b"Connection: keep-alive\r\n", b"")
            up_writer.write(f"{method} {url.raw_path.decode()} HTTP/1.1\r\n".encode() + rest + content)
            writer.write((await up_reader.read()).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            up_writer.close()
        finally:
            writer.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def _pairs(headers: bytes) -> list[tuple[bytes, bytes]]:
    return [tuple(line.split(b": ", 1)) for line in headers.split(b"\r\n") if line]  # type: ignore[misc]


def make_certificate(folder: Path) -> Path:
    """Make a certificate of localhost, with its key beside it."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout key.pem -out cert.pem"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost"], cwd=folder, check=True, capture_output=True
    )
    return folder / "cert.pem"


@asynccontextmanager
async def tls_front(endpoint: ScriptedEndpoint, certificate: Path) -> AsyncGenerator[str]:
    """Serve an endpoint with TLS and a certificate that nobody has signed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_name("key.pem"))
    up = httpx.URL(endpoint.url)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while content := await reader.read(2**16):
            writer.write(content)
        writer.close()

    open_ends: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ends.append(writer)
        up_reader, up_writer = await asyncio.open_connection(up.host, up.port)
        open_ends.append(up_writer)
        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(handle, "localhost", 0, ssl=context)
    async with server:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}/v1"
        for writer in open_ends:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in open_ends), return_exceptions=True)
