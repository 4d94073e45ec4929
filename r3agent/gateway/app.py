"""Routes of a gateway.

    /episodes/ID/TRY/v1/chat/completions     a call; also /v1/responses, /v1/messages and /v1/messages/count_tokens
    /episodes/ID/TRY/v1/...                  anything else passes through, e.g. /v1/models, and is not recorded
    /v1/...                                  the same; ID and TRY from the headers X-R3-Episode and X-R3-Label
    POST /episodes/ID/verdict                {"passed": true} or {"score": 0.7}, and "feedback", "label": TRY, "end"
    GET  /episodes/ID                        the trajectory so far
    GET  /health, /metrics

`TRY` is attempt, reflect or retry, or one of several as `retry-2`: see `r3agent.gateway.episodes`. A call without an ID
is an episode of its own. Each response to a call has the ID in `X-R3-Episode` and the try in `X-R3-Label`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from r3agent.errors import ArgumentError, StepLimitError
from r3agent.gateway.answers import error_answer, json_answer
from r3agent.gateway.call import Call
from r3agent.gateway.dialect import ChatApi, Dialect
from r3agent.gateway.episodes import Episodes, OpenEpisode, Refusal
from r3agent.gateway.journal import STORE_S, Journal
from r3agent.gateway.live import MakeTerms
from r3agent.gateway.messages_api import MessagesApi
from r3agent.gateway.metrics import Metrics
from r3agent.gateway.passing import Passing
from r3agent.gateway.relay import Relay
from r3agent.gateway.responses_api import ResponsesApi
from r3agent.gateway.upstream import KEYS, Target, Upstream, UpstreamError, bare_key
from r3agent.gateway.verdict import read_verdict
from r3agent.http.events import parse_json
from r3agent.recording.blocks import SpanScope
from r3agent.recording.episode import Episode
from r3agent.recording.exchange import Exchange
from r3agent.recording.memory import Memory
from r3agent.recording.recorder import Recorder

logger = logging.getLogger(__name__)

COUNTS = {"/messages/count_tokens": "/messages", "/responses/input_tokens": "/responses"}
"""Routes that count the tokens of a prompt, to the route of its call."""

EPISODE, TRY, TOKEN = "X-R3-Episode", "X-R3-Label", "X-R3-Token"
"""Headers of requests; the first two are of responses too."""

LEFT = "the client left"
"""Failure of a call whose client did not wait for the answer."""

SWEEP_S = 1.0
"""Time between two searches for idle episodes, at most."""


class App:
    """Gateway without its socket, for one event loop.

    Args:
        token: token that every request must have, in `X-R3-Token` or as its API key.
        body_limit: largest body of a request, in bytes.
    """

    def __init__(
        self,
        target: Target,
        *,
        recorder: Recorder | None,
        journal: Journal | None,
        idle_s: float,
        timeout_s: float,
        token: str | None,
        body_limit: int,
        policy: Callable[[], Awaitable[MakeTerms]],
    ) -> None:
        self.episodes = Episodes(recorder, idle_s)
        self._target, self._recorder, self._token = target, recorder, token
        self._idle_s, self._timeout_s = idle_s, timeout_s
        self._dialects: Mapping[str, Dialect] = {
            "/chat/completions": ChatApi(),
            "/responses": ResponsesApi(),
            "/messages": MessagesApi(),
        }
        """Routes whose calls are recorded, and the API that their clients speak."""
        self.journal = journal
        self._terms = policy
        self._targets: dict[Any, Target] = {}
        self._memory = Memory()
        self.metrics = Metrics(lambda: len(self.episodes.open))
        self.web = web.Application(client_max_size=body_limit, middlewares=[self._guard])
        self.web.add_routes(
            [
                web.get("/health", self._health),
                web.get("/metrics", self._metrics),
                web.get("/episodes/{episode}", self._trajectory),
                web.post("/episodes/{episode}/verdict", self._verdict),
                web.route("*", "/episodes/{episode}/{try}/v1{path:/.*}", self._call),
                web.route("*", "/v1{path:/.*}", self._call),
            ]
        )
        self.web.cleanup_ctx.append(self._running)

    async def _running(self, _: web.Application) -> AsyncIterator[None]:
        self._upstream = Upstream(self._timeout_s)
        self._relay = Relay(self._upstream)
        self._passing = Passing(self._upstream, self._target, self._memory)
        sweeper = asyncio.create_task(self._sweep())
        yield
        sweeper.cancel()
        await self._upstream.close()
        for entry in list(self.episodes.open.values()):
            self._complete(entry)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self._idle_s / 4))
            for entry in self.episodes.idle(time.monotonic()):
                self._complete(entry)
            if self.journal is not None and self.journal.is_full:
                try:
                    await self._renew(self.journal)
                except OSError as error:  # the disk is full, perhaps not for long
                    logger.warning("%s: is not written anew: %s", self.journal.path, error)

    async def _renew(self, full: Journal) -> None:
        """Begin another journal, with the open episodes; all others are in the store before the full one goes.

        It stays for the next gateway if some are not, e.g. because the disk was full.
        """
        assert self._recorder is not None
        self.journal = Journal(full.path.parent)
        for entry in self.episodes.open.values():
            self.journal.note(entry)
        if await asyncio.to_thread(self._recorder.flush, STORE_S) and not self._recorder.counts.failed:
            full.remove()
        else:
            logger.warning("%s: not all of its episodes are stored; the next gateway of the store reads it", full.path)

    def _complete(self, entry: OpenEpisode) -> None:
        try:
            self.episodes.complete(entry)
        except Exception:  # the other episodes go on
            logger.exception("episode %s is not stored", entry.episode_id)

    # ---- every request ----

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        path = request.match_info.get("path", "")
        dialect = self._dialects.get(COUNTS.get(path, path))
        try:
            if self._token is not None and request.path != "/health" and not _has_token(request, self._token):
                raise Refusal(401, f"this gateway needs its token, as the API key or in the header {TOKEN}")
            return await handler(request)
        except Refusal as refusal:
            return error_answer(dialect, refusal.status, str(refusal))
        except web.HTTPRequestEntityTooLarge as error:
            return error_answer(dialect, 413, f"{error.text}; raise --max-body-mb")
        except web.HTTPException as error:
            return error_answer(dialect, error.status, f"{request.method} {request.path}: {error.reason}")
        except UpstreamError as error:
            return error_answer(dialect, error.status, str(error))
        except web.RequestPayloadError as error:
            return error_answer(dialect, 400, f"the body is not what its headers say: {error}")
        except ConnectionError:  # the client has left
            raise
        except Exception:
            logger.exception("%s %s", request.method, path)
            return error_answer(dialect, 500, "the gateway failed; its log has the reason")

    async def _health(self, request: web.Request) -> web.Response:
        return json_answer({"status": "ok", "upstream": self._target.shown, "open_episodes": len(self.episodes.open)})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    # ---- calls ----

    async def _call(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        content = await request.read()
        dialect = self._dialects.get(COUNTS.get(path, path)) if request.method == "POST" else None
        if dialect is None:
            return await self._passing.run(request, path, content)
        try:
            body = parse_json(content)
        except ValueError:
            body = None
        if not isinstance(body, dict):  # the upstream says what it thinks of it
            return await self._passing.run(request, path, content)
        try:
            chat = dialect.to_chat(body)
        except ArgumentError as error:
            raise Refusal(400, str(error)) from None
        if path in COUNTS:
            return await self._passing.count(request, dialect, chat)
        messages: Any = chat.get("messages")
        entry, scope = self.episodes.find(
            request.match_info.get("episode") or request.headers.get(EPISODE) or None,
            request.match_info.get("try") or request.headers.get(TRY) or "attempt",
            messages if isinstance(messages, list) else (),
            await self._terms(),
        )
        name = next(name for name, one in entry.tries.items() if one is scope)
        extra = {EPISODE: entry.episode_id, TRY: name}
        try:
            retried = scope.terms is not None and scope.terms.access is not None
            url, memory = self._target.shown, self._memory
            exchange = Exchange(entry.episode, scope, chat, base_url=url, memory=memory, retried=retried)
        except StepLimitError as error:
            raise Refusal(400, str(error)) from None
        except Exception as error:  # it is no chat completion's request
            self._memory.report_error("a call is not recorded", error)
            entry.episode.lose(scope)
            return await self._passing.run(request, path, content)
        call = Call(request, exchange, self._target_of(exchange), dialect, body, extra)
        task = asyncio.current_task()
        assert task is not None
        entry.tasks.add(task)
        entry.calls[exchange] = scope
        started = time.perf_counter()
        try:
            response = await self._relay.run(call)
            if call.out is None:
                await response.prepare(request)
                await response.write_eof()
            return response
        except (asyncio.CancelledError, ConnectionError):
            call.failure = call.failure or ("" if exchange.is_answered else LEFT)
            raise
        finally:
            entry.failure = call.failure or entry.failure
            entry.tasks.discard(task)
            self.metrics.call(path, time.perf_counter() - started, is_answered=not call.failure)
            exchange.finish()
            entry.calls.pop(exchange, None)
            entry.used_at = time.monotonic()
            if self.journal is not None:
                self.journal.note(entry)

    def _target_of(self, exchange: Exchange) -> Target:
        """Return where the terms of a call send it; by default the upstream."""
        if exchange.headers is None:
            return self._target
        key = exchange.base_url, tuple(exchange.headers.items()), exchange.access
        if key not in self._targets:
            self._targets[key] = self._target.at(exchange.base_url, exchange.headers, exchange.access)
        return self._targets[key]

    # ---- episodes ----

    async def open_own(self, episode_id: str, episode: Episode, scope: SpanScope) -> None:
        """Register the try of an episode of this process."""
        tries: dict[str, SpanScope] = {scope.label: scope}
        self.episodes.open[episode_id] = OpenEpisode(episode_id, episode, tries=tries, is_own=True)

    async def close_own(self, episode_id: str) -> None:
        """End such a try: record its answers, and cancel the calls without one."""
        entry = self.episodes.open.pop(episode_id)
        entry.record_answers()
        for task in (tasks := list(entry.tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _trajectory(self, request: web.Request) -> web.Response:
        episode_id = request.match_info["episode"]
        if (entry := self.episodes.open.get(episode_id)) is not None:
            if (recorded := entry.trajectory()) is None:
                raise Refusal(404, f"episode {episode_id!r}: it has no call yet")
            return json_answer(recorded.model_dump(mode="json"))
        stored = await asyncio.to_thread(self.episodes.stored, episode_id)
        return json_answer(stored.model_dump(mode="json"))

    async def _verdict(self, request: web.Request) -> web.Response:
        episode_id = request.match_info["episode"]
        given = read_verdict(await request.read())
        if (entry := self.episodes.open.get(episode_id)) is not None:
            name = given.pop("label")
            trajectory_id = self.episodes.verdict(episode_id, name, **given)
            if self.journal is not None:
                self.journal.note(entry)
            state = {"state": "stored"} if trajectory_id else {"state": "open", "idle_s": self._idle_s}
            return json_answer({"episode": episode_id, "trajectory_id": trajectory_id, **state})
        trajectory_id = await asyncio.to_thread(self.episodes.label, episode_id, given)
        return json_answer({"episode": episode_id, "trajectory_id": trajectory_id, "state": "labelled"})


def _has_token(request: web.Request, token: str) -> bool:
    given = [request.headers.get(name, "") for name in (TOKEN, *KEYS)]
    return any(hmac.compare_digest(bare_key(value).encode(), token.encode()) for value in given)
