"""Run the embedded server in this process."""

from __future__ import annotations

import os
import signal

import uvicorn
from transformers.utils.logging import disable_progress_bar

from r3agent._util.address import base_url, listen
from r3agent.serve.engine.engine import Engine
from r3agent.serve.engine.model import load_model
from r3agent.serve.http.app import create_app
from r3agent.serve.process.options import API_KEY_VARIABLE

GRACE_S = 5
"""Time for running requests to finish after a stop signal."""
KEEP_ALIVE_S = 60
"""Time before an idle connection is closed."""


def serve(
    model: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    api_key: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    max_model_len: int | None = None,
    max_batch: int = 256,
    max_waiting: int = 4096,
    kv_cache_gib: float = 4.0,
    threads: int | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. Prints `serving NAME on http://HOST:PORT/v1` when it listens.

    Args:
        model: checkpoint directory, hub id or `bundled`.
        port: port to listen on; 0 chooses a free one.
        name: served name; default the directory's name.
        api_key: key that clients must send; default `$R3AGENT_SERVE_API_KEY`, or else no key is needed.

    The other arguments are those of `load_model` and `Engine`.

    Raises:
        ConfigError: the model does not load, a setting is out of range or the port is taken.
    """
    disable_progress_bar()
    with listen(host, port) as listener:
        served = load_model(model, name=name, dtype=dtype, device=device, max_model_len=max_model_len)
        engine = Engine(
            served, max_batch=max_batch, max_waiting=max_waiting, kv_cache_gib=kv_cache_gib, threads=threads
        )
        config = uvicorn.Config(
            create_app(engine, api_key=api_key or os.environ.get(API_KEY_VARIABLE)),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=GRACE_S,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        # uvicorn raises the signal again after it has stopped, when there is nothing left to interrupt.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda _number, _frame: None)
        print(f"serving {served.name} on {base_url(host, listener.getsockname()[1])}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])
