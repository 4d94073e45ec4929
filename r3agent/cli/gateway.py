"""`r3agent gateway`: record the calls of any program that takes a base URL."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.messages import count
from r3agent.cli.access import PROXY, VERIFY, read_access
from r3agent.cli.command import HEADER, Output, next_step, verb
from r3agent.cli.traces import export_spans_of
from r3agent.errors import ConfigError
from r3agent.gateway.server import Gateway
from r3agent.store.registry import Registry
from r3agent.store.shards import store_of_run


@verb()
def gateway(
    *,
    upstream: Annotated[
        str, Parameter(help="Base URL of an OpenAI-compatible endpoint, e.g. http://127.0.0.1:8000/v1.")
    ],
    out: Annotated[
        Path | None, Parameter(help="Store of the episodes, or a run directory; default: that of --run.")
    ] = None,
    run: Annotated[
        Path | None,
        Parameter(
            help="Run directory: calls of its policy (NAME, NAME@live, `policy`) go to the live version, and calls of "
            "other models pass and are never trained on."
        ),
    ] = None,
    model: Annotated[
        str | None, Parameter(help="Served name of the policy, in place of --run; default: every model is.")
    ] = None,
    host: Annotated[
        str, Parameter(help="Address to listen on; all but this machine's own need --token-env.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(help="Port to listen on; 0 chooses a free one.")] = 8100,
    api_key_env: Annotated[
        str | None,
        Parameter(help="Environment variable with the upstream's key; default: each client's own key goes upstream."),
    ] = None,
    header: Annotated[tuple[str, ...], HEADER] = (),
    proxy: Annotated[str, PROXY] = "",
    verify: Annotated[str, VERIFY] = "true",
    token_env: Annotated[
        str | None,
        Parameter(
            help="Environment variable with a token that clients must send, as their API key or in the header "
            "X-R3-Token; the upstream does not get it."
        ),
    ] = None,
    idle_s: Annotated[
        float, Parameter(help="Seconds without a call after which an episode without a final verdict is stored.")
    ] = 600.0,
    timeout_s: Annotated[float, Parameter(help="Longest time without a byte of the upstream, in seconds.")] = 600.0,
    max_body_mb: Annotated[float, Parameter(help="Largest body of a request, in MiB.")] = 64.0,
) -> Output:
    store = out or run
    if store is None:
        raise ConfigError("gateway: no store; pass --out DIRECTORY, or --run with a run directory")
    if run is not None:
        _begin(run, upstream)
    opened = Gateway(
        upstream,
        api_key=_secret(api_key_env, "--api-key-env"),
        **read_access(header, proxy, verify),
        out=store,
        model=model,
        run=run,
        host=host,
        port=port,
        token=_secret(token_env, "--token-env"),
        idle_s=idle_s,
        timeout_s=timeout_s,
        body_limit_mb=max_body_mb,
    )
    with opened:
        print(_usage(opened, store), file=sys.stderr, flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    assert opened.recorder is not None
    counts = opened.recorder.counts
    text = f"{count(counts.recorded, 'episode')} stored in {store}; next: {next_step('inspect', store)}"
    return Output({"url": opened.url, "store": str(store), **counts._asdict()}, text, ok=not counts.failed)


def _begin(run: Path, upstream: str) -> None:
    """Make the base model live in a run that no stage has begun.

    Raises:
        ConfigError: it is no run.
        EndpointError, AccessError: the upstream does not answer as its policy.
    """
    store_of_run(run)
    export_spans_of(run)
    if Registry(run).live is None:
        from r3agent.run.directory import RunDirectory

        RunDirectory(run, {"policy.base_url": upstream}).ensure_live()


def _usage(gateway: Gateway, store: Path) -> str:
    """Write how to use a gateway."""
    here = gateway.url.removesuffix("/v1")
    return "\n".join(
        [
            f"gateway on {gateway.url}, recording to {store}; Ctrl-C stores what is open. For a program:",
            f"  export OPENAI_BASE_URL={gateway.url_of('ID')}     # ID: any name of the episode",
            f"  export ANTHROPIC_BASE_URL={gateway.url_of('ID').removesuffix('/v1')}",
            f"and its outcome:  curl -d '{{\"passed\": true}}' {here}/episodes/ID/verdict",
            f"A second try:     {here}/episodes/ID/reflect/v1, and then {here}/episodes/ID/retry/v1",
        ]
    )


def _secret(variable: str | None, flag: str) -> str | None:
    if variable is None:
        return None
    if not (value := os.environ.get(variable, "").strip()):
        raise ConfigError(f"{flag} {variable}: that variable is not set; export the secret in it")
    return value
