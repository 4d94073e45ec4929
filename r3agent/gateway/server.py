"""A gateway that listens, in a thread of this process with an event loop of its own.

    with Gateway("http://127.0.0.1:8000/v1", out="runs/mine") as gateway:      # calls become episodes of a store
        print(gateway.url)

    with Gateway("http://127.0.0.1:8000/v1") as gateway:                       # calls become steps of a known try
        url = gateway.open(episode, scope)  # OPENAI_BASE_URL of one try
        ...
        gateway.close(url)  # its spans are in the episode, and later calls are refused

The end of the block, as Ctrl-C and SIGTERM at the command, stores all episodes. A gateway that is killed leaves its
journal, from which the next one of the same store takes its episodes: see `r3agent.gateway.journal`.
"""

from __future__ import annotations

import logging
import resource
import ssl
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from r3agent._util.address import base_url, is_loopback, listen
from r3agent._util.checked import Port, Positive, checked
from r3agent._util.serving import ServerThread
from r3agent.errors import ConfigError
from r3agent.gateway.journal import STORE_S, Journal, left_behind
from r3agent.gateway.live import any_model, live_model, one_model
from r3agent.recording.blocks import SpanScope
from r3agent.recording.episode import Episode
from r3agent.recording.recorder import Recorder
from r3agent.records.trajectory import EPISODE, Trajectory, new_id
from r3agent.store.shards import store_at

logger = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that wait to be accepted."""

GRACE_S = 5.0
"""Time for calls to end after a signal; then they are cancelled, and recorded as cut off."""

MAX_QUEUE = 10**9
"""Episodes that wait for the disk; none is dropped."""


class Gateway:
    """Gateway of one upstream; a context manager.

    Args:
        upstream: base URL of an OpenAI-compatible endpoint.
        api_key: key of the upstream, in place of the clients' own.
        headers: further headers of every request to the upstream.
        proxy: URL of an HTTP proxy on the way to the upstream; default: that of the environment.
        verify: check of the upstream's certificate, as `OpenAIPolicy` documents it.
        out: store of the episodes; `None` if they are those of `open`, which their owner stores.
        model: served name of the policy; calls of other models are then recorded as not the policy's.
        run: run directory of the policy, in place of `model`: its calls go to the live version.
        host: address to listen on; any but a loopback address needs a `token`.
        port: port to listen on; 0 chooses a free one.
        token: token that every request must have, as its API key or in the header `X-R3-Token`.
        idle_s: time without a call after which an episode is complete.
        timeout_s: longest time without a byte of the upstream.
        body_limit_mb: largest body of a request.

    Raises:
        ConfigError: the URL is no HTTP URL, the address cannot be listened on or has no
            token, or the store cannot be written.
    """

    @checked
    def __init__(
        self,
        upstream: str,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        verify: bool | str | ssl.SSLContext = True,
        out: str | Path | None = None,
        model: str | None = None,
        run: str | Path | None = None,
        host: str = "127.0.0.1",
        port: Port = 0,
        token: str | None = None,
        idle_s: Positive = 600.0,
        timeout_s: Positive = 600.0,
        body_limit_mb: Annotated[float, Field(gt=0, le=4096)] = 64.0,
    ) -> None:
        from r3agent.gateway.upstream import Target

        if model is not None and run is not None:
            raise ConfigError(f"model = {model!r}, run = {str(run)!r}: give one of them; a run names its own policy")
        if not is_loopback(host) and not token:
            raise ConfigError(
                f"host {host}: others can reach this address; give a token that they must send (--token-env VARIABLE)"
            )
        key = (api_key or "").strip() or None
        access: Any = {"proxy": proxy, "verify": verify}
        self._target = Target(base_url=upstream, api_key=key, headers=headers or {}, token=token, **access)
        self._out = out
        self._address = host, port
        self._settings: dict[str, Any] = {
            "idle_s": idle_s,
            "timeout_s": timeout_s,
            "token": token,
            "body_limit": int(body_limit_mb * 2**20),
            "policy": live_model(run) if run is not None else one_model(model) if model is not None else any_model(),
        }

    def __enter__(self) -> Gateway:
        from r3agent.gateway.app import App
        from r3agent.gateway.episodes import Complete

        _raise_file_limit()
        self._socket = listen(*self._address)
        self.url = base_url(self._address[0], self._socket.getsockname()[1])
        """Base URL for clients, ending in /v1; of one try, it is `url_of`."""
        self.recorder = journal = None
        found: list[Trajectory] = []
        if self._out is not None:
            self.recorder = Recorder(self._out, queue_size=MAX_QUEUE)
            found = _store_left_behind(self.recorder)
            journal = Journal(store_at(self._out))
        self._app = App(self._target, recorder=self.recorder, journal=journal, **self._settings)
        for trajectory in found:
            complete = Complete(trajectory.trajectory_id, is_ended=False)
            self._app.episodes.remember(str(trajectory.metadata.get(EPISODE)), complete)
        settings: Any = {"backlog": BACKLOG, "handler_cancellation": True, "shutdown_timeout": GRACE_S}
        self._server = ServerThread(self._app.web, self._socket, name="r3agent-gateway", **settings)
        self._server.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.__exit__()
        if self.recorder is None or self._app.journal is None:
            return
        if not self.recorder.close(STORE_S) or self.recorder.counts.failed:
            logger.warning("%s: not all episodes are stored; they stay in %s", self._out, self._app.journal.path)
        else:
            self._app.journal.remove()

    # ---- tries of this process ----

    def url_of(self, episode_id: str, try_name: str = "attempt") -> str:
        """Return the base URL of one try of an episode."""
        return f"{self.url.removesuffix('/v1')}/episodes/{episode_id}/{try_name}/v1"

    def open(self, episode: Episode, scope: SpanScope) -> str:
        """Register the try of a known episode; return a base URL whose calls are recorded as its steps."""
        episode_id = new_id()
        self._server.call(self._app.open_own(episode_id, episode, scope))
        return self.url_of(episode_id, scope.label)

    def close(self, url: str) -> None:
        """End a try: cancel its running calls, record what was answered, and refuse later calls."""
        self._server.call(self._app.close_own(url.split("/episodes/")[1].partition("/")[0]))


def _store_left_behind(recorder: Recorder) -> list[Trajectory]:
    """Store the episodes of gateways that were killed, and return them."""
    every: list[Trajectory] = []
    for path, found in left_behind(store_at(recorder.directory)):
        every += found
        for trajectory in found:
            recorder.record(trajectory)
        logger.warning("%s: a gateway was killed; its %d open episodes are stored", path, len(found))
        if recorder.flush(STORE_S) and not recorder.counts.failed:
            path.unlink()
    return every


def _raise_file_limit() -> None:
    """Allow as many open files as this process may have: each call has two connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
