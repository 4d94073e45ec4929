"""`r3agent audit`: checks of tasks and verifier before you collect."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent import audit as auditing
from r3agent._util.aio import run_sync
from r3agent.audit.lengths import EndpointAddress
from r3agent.cli.command import Output, Overrides, verb
from r3agent.cli.flags import AUDIT, SUBJECT, URL
from r3agent.cli.progress import ConsoleReporter
from r3agent.errors import ConfigError
from r3agent.policy import OpenAIPolicy
from r3agent.run.config import CONFIG_FILE, load_config
from r3agent.store.models import resolve_model
from r3agent.tasks import in_run
from r3agent.train.tokenizer import prompt_tokens


@verb(*URL, *SUBJECT, *AUDIT)
def audit(
    *,
    overrides: Overrides,
    run: Annotated[Path | None, Parameter(help="Run directory whose r3.toml has the settings.")] = None,
    probe: Annotated[
        str | None, Parameter(help="Base URL of a served model to try tasks on: answers read, first tries, groups.")
    ] = None,
) -> Output:
    file = None if run is None else run / CONFIG_FILE
    if file is not None and not file.exists():
        raise ConfigError(f"{file}: there is no such run; leave --run out, or name another")
    if probe is not None:
        overrides = {**overrides, "policy.base_url": probe}
    config = load_config(file, overrides)
    task, policy = config.task, config.policy
    access = policy.access()
    with ConsoleReporter() as reporter:
        tokenizer = None
        if run or "policy.base_model" in overrides:
            with suppress(ConfigError):  # without it the endpoint counts, or lengths are estimated; the report says so
                tokenizer = prompt_tokens(resolve_model(policy.base_model))
        endpoint = None
        if run or "policy.base_url" in overrides:
            endpoint = EndpointAddress(policy.base_url, policy.model, access)
        lengths = auditing.Lengths(
            config.sampling.max_tokens or 1, config.audit.model_limit, tokenizer=tokenizer, endpoint=endpoint
        )

        async def run_audit(served: auditing.ServedModel | None = None) -> auditing.Audit:
            return await auditing.audit(
                task.source if run is None else in_run(task.source, run),
                params=task.params,
                seed=task.seed,
                verifier=task.verifier,
                verifier_params=task.verifier_params,
                settings=config.audit,
                lengths=lengths,
                served=served,
                progress=reporter.verdicts,
            )

        async def run_probe() -> auditing.Audit:
            timeout_s, concurrency = policy.timeout_s, config.collect.concurrency or 16
            maker = {**config.agent.load()._asdict(), **config.agent.limits()}
            async with OpenAIPolicy(
                policy.base_url, policy.model, **policy.policy_access(), timeout_s=timeout_s, outage_s=0
            ) as asked:
                served = auditing.ServedModel(asked, config.sampling, task.cut_off, concurrency, maker)
                return await run_audit(served)

        # Ctrl-C ends it at once, and not only where it awaits.
        found = run_sync(run_audit() if probe is None else run_probe())
    return Output(found.model_dump(mode="json"), auditing.report(found), ok=found.ok)
