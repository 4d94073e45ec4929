"""`r3agent doctor` and `r3agent audit`: checks of an endpoint and of tasks before you collect."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent import audit as auditing
from r3agent._util.aio import run_sync
from r3agent.audit.lengths import EndpointAddress
from r3agent.cli.command import API_KEY, Output, Overrides, verb
from r3agent.cli.flags import AUDIT, SUBJECT, URL
from r3agent.cli.progress import ConsoleReporter
from r3agent.doctor import diagnose, report
from r3agent.errors import ConfigError
from r3agent.run.config import CONFIG_FILE, load_config
from r3agent.store.models import resolve_model
from r3agent.train.tokenizer import prompt_tokens


@verb()
def doctor(
    url: Annotated[str, Parameter(help="OpenAI-compatible endpoint, with or without /v1.")],
    /,
    *,
    model: Annotated[str | None, Parameter(help="Served name; default: the first model of the endpoint.")] = None,
    api_key_env: Annotated[str, Parameter(help="Environment variable that holds the API key.")] = API_KEY,
) -> Output:
    key = os.environ.get(api_key_env, "").strip()
    if not key and api_key_env != API_KEY:
        raise ConfigError(f"--api-key-env {api_key_env}: that variable is not set; export the key in it")
    diagnosis = run_sync(diagnose(url, model=model, api_key=key or None))
    return Output(diagnosis.model_dump(mode="json"), report(diagnosis), ok=diagnosis.tier is not None)


@verb(*URL, *SUBJECT, *AUDIT)
def audit(
    *,
    overrides: Overrides,
    run: Annotated[Path | None, Parameter(help="Run directory whose r3.toml has the settings.")] = None,
) -> Output:
    file = None if run is None else run / CONFIG_FILE
    if file is not None and not file.exists():
        raise ConfigError(f"{file}: there is no such run; leave --run out, or name another")
    config = load_config(file, overrides)
    task, policy = config.task, config.policy
    with ConsoleReporter() as reporter:
        tokenizer = None
        if run or "policy.base_model" in overrides:
            with suppress(ConfigError):  # without it the endpoint counts, or lengths are estimated; the report says so
                tokenizer = prompt_tokens(resolve_model(policy.base_model))
        endpoint = None
        if run or "policy.base_url" in overrides:
            endpoint = EndpointAddress(policy.base_url, policy.model, os.environ.get(policy.api_key_env))
        found = asyncio.run(
            auditing.audit(
                task.source,
                params=task.params,
                seed=task.seed,
                verifier=task.verifier,
                verifier_params=task.verifier_params,
                settings=config.audit,
                lengths=auditing.Lengths(
                    config.sampling.max_tokens, config.audit.model_limit, tokenizer=tokenizer, endpoint=endpoint
                ),
                progress=reporter.episodes,
            )
        )
    return Output(found.model_dump(mode="json"), auditing.report(found), ok=found.ok)
