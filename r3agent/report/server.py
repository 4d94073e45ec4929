"""Server of a report, which shows a run while it goes and attaches labels; in a thread of this process.

    with ReportServer("runs/mine") as server:
        print(server.url)

It listens on this machine alone. A label needs a secret that only the page has, and a request by another site's page,
or under another name of this machine, is refused.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r3agent._util.address import listen
from r3agent._util.checked import AtLeastOne, Port, checked
from r3agent._util.serving import ServerThread
from r3agent.errors import ConfigError, R3Error
from r3agent.report.encoding import dumps
from r3agent.report.gather import LIMIT, RunReader, stores_of
from r3agent.report.page import page, policy
from r3agent.store.labels import label
from r3agent.store.shards import OTHER_STORES, STORES

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
WATCH_S = 1.0
"""Time between two looks for changes."""
PAUSE = 3
"""Pause after the reading of a run, as a multiple of what it took."""
MAX_LABEL = 64 << 10
"""Size of a request for a label, in bytes."""

FILES = ("r3.toml", "live.json", "policies/v*/*.json*", "eval/*.json", "gate/v*/*.json")
"""Patterns of a run's files, besides those of its stores, that a report shows."""


@dataclass(frozen=True)
class _State:
    """Content of the page, as the server sends it."""

    revision: int
    facts: str
    index: str
    texts: list[tuple[int, list[str]]]
    """Texts of each chunk, with the revision in which it changed last."""
    chunks: list[bytes]


class ReportServer:
    """Server of a run's report; a context manager.

    Args:
        run: run directory, or a store.
        port: port to listen on; 0 chooses a free one.
        limit: number of trajectories to list, about.

    Raises:
        ConfigError: there is no such directory, or the port is taken.
    """

    @checked
    def __init__(self, run: str | Path, *, port: Port = 0, limit: AtLeastOne = LIMIT) -> None:
        self.run = Path(run)
        self._port, self._limit = port, limit
        self._token = secrets.token_urlsafe(24)
        self._seen: object = None

    def __enter__(self) -> ReportServer:
        self._reader = RunReader(self.run, limit=self._limit, keep=True)
        self._states = deque([self._read()], maxlen=2)  # a page may still ask for parts of the last but one
        self._socket = listen(HOST, self._port)
        self._port = self._socket.getsockname()[1]
        self.url = f"http://{HOST}:{self._port}/"
        """Address of the page."""
        self._server = ServerThread(self._app(), self._socket, name="r3agent-report", shutdown_timeout=1.0)
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()

    def _app(self) -> web.Application:
        from aiohttp import web

        app = web.Application(middlewares=[self._guard], client_max_size=MAX_LABEL)
        app.router.add_get("/", self._page)
        app.router.add_get("/api/state", self._get_state)
        app.router.add_get("/api/facts", self._get_facts)
        app.router.add_get("/api/{part:index|texts}", self._get_part)
        app.router.add_get("/api/{part:chunk}/{number:[0-9]+}", self._get_part)
        app.router.add_post("/api/label", self._post_label)
        app.cleanup_ctx.append(self._watching)
        return app

    # ---- what it shows ----

    def _read(self) -> _State:
        self._seen = self._fingerprint()  # before it is read: later changes are seen by the next look
        facts, browser = self._reader.read()
        return _State(browser.revision, dumps(facts), dumps(browser.index()), browser.texts(), browser.chunks())

    def _fingerprint(self) -> list[tuple[str, int, int]]:
        """Return the sizes and times of the files that the report shows."""
        stores = (f"{store}/{files}" for store in (*STORES, *OTHER_STORES) for files in ("*.*", "labels/*"))
        found: list[tuple[str, int, int]] = []
        for pattern in (*FILES, *stores, "*.jsonl", "*.parquet", "labels/*"):
            for path in self.run.glob(pattern):
                with suppress(OSError):
                    stat = path.stat()
                    found.append((str(path), stat.st_size, stat.st_mtime_ns))
        return sorted(found)

    async def _watching(self, _: web.Application) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch())
        yield
        watch.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            began = time.monotonic()
            try:
                if await asyncio.to_thread(self._fingerprint) == self._seen:
                    continue
                self._states.append(await asyncio.to_thread(self._read))
            except Exception as error:  # a file may be moved, or half written, while it is read
                logger.warning("the report keeps its last state: %s: %s", type(error).__name__, error)
            await asyncio.sleep(PAUSE * (time.monotonic() - began))

    # ---- requests ----

    @property
    def _guard(self) -> Any:
        from aiohttp import web

        hosts = {f"{HOST}:{self._port}", f"localhost:{self._port}"}

        @web.middleware
        async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
            origin = request.headers.get("Origin")
            if request.host not in hosts or (origin is not None and origin.removeprefix("http://") not in hosts):
                response = _json({"error": f"host {request.host}: open http://{HOST}:{self._port}/"}, status=403)
            else:
                try:
                    response = await handler(request)
                except R3Error as error:
                    response = _json({"error": str(error)}, status=400)
            response.headers["Cache-Control"] = "no-store"
            response.headers["X-Content-Type-Options"] = "nosniff"
            response.headers["Cross-Origin-Resource-Policy"] = "same-origin"
            response.headers["Content-Security-Policy"] = f"{policy(live=True)}; frame-ancestors 'none'"
            return response

        return guard

    async def _page(self, _: web.Request) -> web.Response:
        from aiohttp import web

        text = "".join(page(None, title=self.run.resolve().name, token=self._token))
        return web.Response(text=text, content_type="text/html")

    async def _get_state(self, _: web.Request) -> web.Response:
        return _json({"revision": self._states[-1].revision})

    async def _get_facts(self, _: web.Request) -> web.Response:
        state = self._states[-1]
        return _json(f'{{"revision":{state.revision},"facts":{state.facts}}}')

    async def _get_part(self, request: web.Request) -> web.Response:
        asked = request.query.get("revision")
        if (state := next((state for state in self._states if str(state.revision) == asked), None)) is None:
            return _json({"error": "the run has changed; the page reads it again in a moment"}, status=409)
        part = request.match_info["part"]
        if part == "index":
            return _json(state.index)
        if part == "texts":
            since = request.query.get("since", "0")
            if not since.isdecimal():
                return _json({"error": f"since {since}: a revision, or 0 for all"}, status=400)
            fresh = {str(i): texts for i, (mark, texts) in enumerate(state.texts) if mark > int(since)}
            return _json(await asyncio.to_thread(dumps, fresh))
        number = int(request.match_info["number"])
        if number >= len(state.chunks):
            return _json({"error": f"chunk {number}: there are {len(state.chunks)}"}, status=404)
        return _packed_json(state.chunks[number])

    async def _post_label(self, request: web.Request) -> web.Response:
        given_token = request.headers.get("X-R3-Token", "")
        if not secrets.compare_digest(given_token.encode(), self._token.encode()):
            return _json({"error": "the page is of an earlier server; load it again"}, status=403)
        if request.content_type != "application/json":
            return _json({"error": f"content type {request.content_type}: send application/json"}, status=415)
        try:
            given: Any = await request.json()
            store, fields = given.pop("store"), {**given}
        except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
            raise ConfigError("a label is a JSON object with store, trajectory_id, span_id and passed") from None
        if unknown := fields.keys() - {"trajectory_id", "span_id", "passed", "feedback"}:
            raise ConfigError(f"{', '.join(sorted(unknown))}: no field of a label")
        path = next((path for name, path in stores_of(self.run) if name == store), None)
        if path is None or not {"trajectory_id", "passed"} <= fields.keys():
            raise ConfigError(f"store {store!r}: no store of {self.run}, or the label lacks trajectory_id or passed")
        made = await asyncio.to_thread(lambda: label(path, **fields))
        return _json(made.model_dump(mode="json"))


def _json(value: Any, status: int = 200) -> web.Response:
    from aiohttp import web

    text = value if isinstance(value, str) else dumps(value)
    return web.Response(text=text, content_type="application/json", status=status)


def _packed_json(content: bytes) -> web.Response:
    from aiohttp import web

    return web.Response(body=content, content_type="application/json", headers={"Content-Encoding": "gzip"})
