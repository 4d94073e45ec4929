"""Web server in a thread of this process, with an event loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from socket import socket
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from aiohttp import web

T = TypeVar("T")


class ServerThread:
    """Thread in which an application answers; a context manager, whose end waits for the application's cleanup.

    Args:
        app: application; what it does besides belongs into its `cleanup_ctx`.
        listening: socket that listens.
        name: name of the thread.
        backlog: connections that wait to be accepted.
        settings: further arguments of `aiohttp.web.AppRunner`.
    """

    def __init__(
        self, app: web.Application, listening: socket, *, name: str, backlog: int = 128, **settings: Any
    ) -> None:
        self._app, self._socket, self._backlog, self._settings = app, listening, backlog, settings
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._started: Future[None] = Future()

    def __enter__(self) -> ServerThread:
        self._thread.start()
        self._started.result()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(RuntimeError):  # its loop has ended
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the event loop of the server, from another thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _serve(self) -> None:
        try:
            asyncio.run(self._run())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _run(self) -> None:
        from aiohttp import web

        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self._app, access_log=None, **self._settings)
        await runner.setup()
        try:
            await web.SockSite(runner, self._socket, backlog=self._backlog).start()
            self._started.set_result(None)
            await self._ended.wait()
        finally:
            await runner.cleanup()
