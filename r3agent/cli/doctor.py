"""`r3agent doctor`: checks of an endpoint before you collect."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.aio import run_sync
from r3agent.cli.access import PROXY, VERIFY, read_access
from r3agent.cli.command import API_KEY, HEADER, Output, verb
from r3agent.doctor import diagnose, report
from r3agent.errors import ConfigError


@verb()
def doctor(
    url: Annotated[str, Parameter(help="OpenAI-compatible endpoint, with or without /v1.")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Served name; default: the first model of the endpoint.")] = None,
    header: Annotated[tuple[str, ...], HEADER] = (),
    proxy: Annotated[str, PROXY] = "",
    verify: Annotated[str, VERIFY] = "true",
    api_key_env: Annotated[str, Parameter(help="Environment variable that holds the API key.")] = API_KEY,
) -> Output:
    key = os.environ.get(api_key_env)
    if not key and api_key_env != API_KEY:
        raise ConfigError(f"--api-key-env {api_key_env}: that variable is not set; export the key in it")
    diagnosis = run_sync(diagnose(url, model=model, api_key=key, **read_access(header, proxy, verify)))
    return Output(diagnosis.model_dump(mode="json"), report(diagnosis), ok=diagnosis.tier is not None)
