"""`r3agent init` and `r3agent demo`: write the settings of a run, or run the whole loop on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent.cli.command import DEFAULT_RUN, Output, Overrides, RunFlag, next_step, verb
from r3agent.cli.flags import SUBJECT, URL
from r3agent.cli.progress import ConsoleReporter
from r3agent.errors import ConfigError
from r3agent.run.config import CONFIG_FILE, load_config
from r3agent.run.demo import FOR_ONE_DECISION, GAMES, SECONDS, SETTINGS, Game, run_demo
from r3agent.run.stages import Run
from r3agent.store.models import BUNDLED


@verb(*URL, *SUBJECT)
def init(*, overrides: Overrides, run: RunFlag = DEFAULT_RUN) -> Output:
    path = Path(run) / CONFIG_FILE
    if path.exists():
        raise ConfigError(f"{path} exists; edit it, or choose another directory with --run")
    note, config = "", load_config(None, overrides)
    if {config.policy.model, config.policy.base_model, config.task.source} == {"bundled", "countdown"}:
        overrides = {key: value for key, value in SETTINGS.items() if key not in FOR_ONE_DECISION} | overrides
        note = ", with the demo's settings for the bundled policy (another model needs others)"
    made = Run(run, overrides)
    if config.task.source:
        made.check_subject()
    else:
        config.agent.load()
    made.write_config()
    if not config.task.source:
        note = ", but it names no task: fill in task.source, or go on with --task; --task countdown is one to try"
    if config.policy.base_model == "bundled" != config.policy.model:
        note += f"; before you collect, set policy.base_model to the weights of {config.policy.model!r}, to train them"
    collect = next_step("collect", "--run", run)
    bundled = config.policy.base_model == config.policy.model and config.policy.model in BUNDLED
    serve = f"r3agent serve {config.policy.model}, and in another terminal " if bundled else ""
    return Output({"config": str(path)}, f"{path} written{note}; next: {serve}{collect}")


@verb()
def demo(
    *,
    out: Annotated[Path, Parameter(help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int, Parameter(help="Seed of the tasks and of training.")] = 0,
    game: Annotated[Game, Parameter(help="Countdown by one equation, or in steps by calls of a tool.")] = "equation",
) -> Output:
    with ConsoleReporter() as reporter:
        reporter.expect(SECONDS)
        summary, text = run_demo(out, seed, reporter, settings=GAMES[game])
    return Output(summary.model_dump(), text)
