"""`r3agent reverify`: judge stored answers again, without sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.aio import run_sync
from r3agent._util.messages import count
from r3agent.cli.command import Output, Overrides, next_step, switch, verb
from r3agent.cli.flags import flags_of
from r3agent.cli.progress import ConsoleReporter
from r3agent.errors import ConfigError, VerifierError
from r3agent.run.config import CONFIG_FILE, TaskConfig, load_config
from r3agent.run.reverify import reverify as judge_again
from r3agent.tasks import default_verifier
from r3agent.telemetry.export import export_spans

LEFT_OUT = {
    "no_answer": "an error ended them, or the endpoint refused them",
    "no_environment": "the verifier judges in the world of a try, which is gone; name one that judges (task, answer)",
}


@verb(*flags_of("task", TaskConfig, {"--verifier": "verifier"}))
def reverify(
    store: Annotated[str, Parameter(help="Run directory, or a store.")],
    /,
    *,
    overrides: Overrides,
    anew: Annotated[bool, switch("Judge all tries again, as another layer: the verifier was mended.")] = False,
    concurrency: Annotated[int, Parameter(help="Number of episodes that are judged at a time.")] = 64,
) -> Output:
    file = Path(store) / CONFIG_FILE
    on_file = load_config(file if file.exists() else None, {}).task
    if overrides.get("task.verifier", on_file.verifier) != on_file.verifier:  # another one has other settings
        overrides = {"task.verifier_params": {}, **overrides}
    config = load_config(file if file.exists() else None, overrides)
    task = config.task
    name = task.verifier or (default_verifier(task.source) if task.source else "")
    if not name:
        raise ConfigError(f"reverify {store}: name the verifier with --verifier, e.g. exact or module:callable")
    export_spans(config.telemetry, Path(store).absolute().name)
    with ConsoleReporter() as reporter:
        found = run_sync(
            judge_again(
                store,
                name,
                params=task.verifier_params,
                cut_off=task.cut_off,
                verify_timeout_s=task.verify_timeout_s,
                concurrency=concurrency,
                anew=anew,
                on_episode=reporter.episodes,
            )
        )
    if found.errors and not found.judged + found.resumed:
        raise VerifierError(
            f"{store}: {name} could judge no try, and failed on {found.errors}; name another verifier with --verifier, "
            f"or give it settings with --set task.verifier_params.KEY=VALUE; after an outage the "
            f"same command judges them; the first error: {found.first_error}"
        )
    before = f" ({found.resumed} before)" if found.resumed else ""
    lines = [
        f"{found.judged + found.resumed} of {count(found.tries, 'try')} judged by {name}{before}, "
        f"as layer {found.layer}",
        *(f"  {change.replace('->', ' -> ')}  {n}" for change, n in found.changes.items()),
        *([f"{found.open} left open"] if found.open else []),
        *(f"{n} left out: {LEFT_OUT[reason]}" for reason, n in found.left_out.items()),
    ]
    if found.errors:
        lines.append(f"{found.errors} failed, which the same command judges again; the first: {found.first_error}")
    lines += [f"{count(n, 'try')} without a verdict of it keep that of {source}" for source, n in found.kept.items()]
    lines.append(f"next: {next_step('inspect', store)}")
    return Output(found.model_dump(mode="json"), "\n".join(lines), ok=not found.errors)
