"""`r3agent init` and `r3agent demo`: write the settings of a run, or run the whole loop on this machine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.messages import count
from r3agent.cli.command import DEFAULT_RUN, Output, Overrides, RunFlag, next_step, verb
from r3agent.cli.flags import SUBJECT, URL
from r3agent.cli.progress import ConsoleReporter
from r3agent.errors import ConfigError
from r3agent.http.urls import ApiURL
from r3agent.records.summary import Tally
from r3agent.report import write_report
from r3agent.run.config import CONFIG_FILE, load_config
from r3agent.run.demo import GAMES, SECONDS, Game, run_demo, settings_for
from r3agent.run.directory import WAITING
from r3agent.run.policy_config import PolicyConfig
from r3agent.run.stages import Run
from r3agent.store.copy import copy_store
from r3agent.store.counting import count as count_stored
from r3agent.store.index import latest_entries
from r3agent.store.models import BUNDLED
from r3agent.store.shards import store_at
from r3agent.tasks import RECORDED, find_tasks, in_run, split_by_prompt
from r3agent.tasks.splits import APART


@verb(*URL, *SUBJECT)
def init(
    *,
    overrides: Overrides,
    run: RunFlag = DEFAULT_RUN,
    from_: Annotated[
        Path | None,
        Parameter(name="--from", help="Store of recorded episodes to copy into the run, with --task recorded."),
    ] = None,
) -> Output:
    path = Path(run) / CONFIG_FILE
    if path.exists():
        raise ConfigError(f"{path} exists; edit it, or choose another directory with --run")
    note, config = "", load_config(None, overrides)
    if from_ is not None and config.task.source != RECORDED:
        raise ConfigError(f"--from {from_}: its tasks are those of the run with --task {RECORDED}; add that")
    _refuse_store(Path(run), path)
    if chosen := settings_for(config):
        overrides = chosen | overrides
        note = ", with the demo's settings for the bundled policy (another model needs others)"
    made = Run(run, overrides)
    if config.task.source:
        made.check_subject()
    else:
        config.agent.load()
    if from_ is not None and store_at(from_).resolve() != (store := path.parent / "trajectories").resolve():
        copy_store(from_, store)
    made.write_config()
    if (url := ApiURL(made.config.policy.base_url)).is_bare:
        note += f"; policy.{url.hint}; `{next_step('doctor', made.config.policy.base_url)}` tries both"
    if config.task.source == RECORDED:
        return _recorded(made, path, note)
    if not config.task.source:
        note += ", but it names no task: fill in task.source, or go on with --task; --task countdown is one to try"
    if config.policy.base_model == "bundled" != config.policy.model:
        note += f"; before you collect, set policy.base_model to the weights of {config.policy.model!r}, to train them"
    collect = next_step("collect", "--run", run)
    bundled = config.policy.base_model == config.policy.model and config.policy.model in BUNDLED
    bundled &= config.policy.base_url == PolicyConfig().base_url  # where `serve` listens
    serve = f"r3agent serve {config.policy.model}, and in another terminal " if bundled else ""
    return Output({"config": str(path)}, f"{path} written{note}; next: {serve}{collect}")


def _refuse_store(run: Path, file: Path) -> None:
    """Refuse a directory with the shards of a store, which readers of a run would not find."""
    for shard in sorted(run.glob("*.jsonl")) if not (run / "trajectories").is_dir() else ():
        with shard.open("rb") as lines:
            if b'"trajectory_id":' in lines.readline():
                made = next_step("init", "--task", RECORDED, "--run", f"{run}-run", "--from", run)
                raise ConfigError(f"{run} is a store, which {file} would hide; make the run beside it: {made}")


def _recorded(run: Run, path: Path, note: str) -> Output:
    """Report on a run of recorded tasks, and what it needs next."""
    store, waits = path.parent / "trajectories", run.verifier_name in WAITING
    if not store.is_dir():
        gateway = next_step("gateway", "--run", path.parent, "--upstream", run.config.policy.base_url)
        text = f'{path} written{note}; next: Recorder(run="{path.parent}") in the application, or {gateway}'
        return Output({"config": str(path), "episodes": 0}, text)
    stored, tally = latest_entries(store), Tally()
    count_stored(tally, store, stored.values())
    tasks = Counter(map(split_by_prompt, find_tasks(in_run(RECORDED, path.parent), split="all")))
    splits = {split: tasks[split] for split in APART}
    open_ = tally.summary().unlabelled
    lines = [
        f"{path} written{note}; {count(len(stored), 'episode')} of {count(tasks.total(), 'task')}: "
        + ", ".join(f"{split} {n}" for split, n in splits.items())
    ]
    if open_:
        lines.append(
            f"{count(open_, 'episode')} without a verdict: {next_step('label', '--from', 'FILE.csv', path.parent)}"
        )
    if waits:
        lines.append(
            f"the verifier {run.verifier_name!r} judges nothing: these runs learn from labels; set task.verifier to "
            "one that judges, to try failures again"
        )
    return Output(
        {"config": str(path), "episodes": len(stored), "tasks": splits, "unlabelled": open_}, "\n".join(lines)
    )


@verb()
def demo(
    *,
    out: Annotated[Path, Parameter(help="Run directory.")] = Path("runs/demo"),
    seed: Annotated[int, Parameter(help="Seed of the tasks and of training.")] = 0,
    game: Annotated[Game, Parameter(help="Countdown by one equation, or in steps by calls of a tool.")] = "equation",
) -> Output:
    with ConsoleReporter() as reporter:
        reporter.expect(SECONDS)
        summary, text = run_demo(out, seed, reporter, settings=GAMES[game], on_tally=reporter.tally)
        reporter.stage("writing the report")
    path = write_report(out).path
    return Output({**summary.model_dump(), "report": str(path)}, f"{text}\n\nreport: {path}")
