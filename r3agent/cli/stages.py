"""Verbs for the stages of a run: collect, train, deploy, rollback, eval, and loop for all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from r3agent._util.console import printable
from r3agent._util.messages import count, nearest
from r3agent.cli.command import DEFAULT_RUN, Output, Overrides, RunFlag, next_step, switch, verb
from r3agent.cli.flags import (
    AGENT,
    BRANCH,
    COLLECT,
    DRAW,
    EVAL,
    ROUNDS,
    SUBJECT,
    TRAIN,
    URL,
    ByFlag,
    ReasonFlag,
    decided_by,
)
from r3agent.cli.inspect_view import summary_lines
from r3agent.cli.limits_view import limit_lines
from r3agent.cli.plans import collect_plan, train_plan
from r3agent.cli.progress import ConsoleReporter
from r3agent.deploy import DeployReport
from r3agent.errors import ConfigError
from r3agent.evaluate import Comparison, Decision, finding, table
from r3agent.records.summary import CollectSummary
from r3agent.records.versions import BASE
from r3agent.run.config import CONFIG_FILE
from r3agent.run.loop import run_loop
from r3agent.run.stages import Run
from r3agent.store.history import PERSON
from r3agent.store.shards import shards, store_of_run
from r3agent.train.lineage import lineage_of
from r3agent.train.report import progress_line
from r3agent.train.rows import why_untrainable

OUTDATED = "{n} stored episodes do not count: other settings made them, or their task has changed since; they are kept"
NOT_ASKED = (
    "no try asked the policy, so that there is nothing to train on: let the agent ask for the model `policy` with the "
    "client that it gets, or pass its own through r3agent.instrument"
)


@verb(*URL, *SUBJECT, *COLLECT)
def collect(
    *,
    overrides: Overrides,
    run: RunFlag = DEFAULT_RUN,
    plan: Annotated[bool, switch("Estimate tokens, cost, bytes and time; collect nothing.")] = False,
) -> Output:
    if plan:
        return collect_plan(_open(run, overrides))
    opened = Run(run, overrides)
    with ConsoleReporter(prices=opened.config.policy.prices) as reporter:
        _tell_new(opened, reporter)
        reporter.stage(f"collecting episodes of up to {count(opened.config.collect.n, 'task')}")
        summary = opened.collect(reporter.episodes, on_tally=reporter.tally)
    return _collected(opened, summary, summary.model_dump())


@verb(*URL, *SUBJECT, *BRANCH, *DRAW)
def branch(*, overrides: Overrides, run: RunFlag = DEFAULT_RUN) -> Output:
    opened = Run(run, overrides)
    if not opened.config.branch.source and not (opened.directory.is_dir() and shards(opened.directory)):
        store_of_run(run)  # raises if it is no run: its name may be misspelt
    with ConsoleReporter(prices=opened.config.policy.prices) as reporter:
        _tell_new(opened, reporter)
        failures = opened.failures()
        reporter.stage(f"branching {count(len(failures.begins), 'recorded failure')} off")
        report = opened.branch(reporter.episodes, failures=failures, on_tally=reporter.tally)
    begun = f"{count(report.branches, 'failure')} branched off, in {count(report.read, 'recorded episode')}"
    return _collected(opened, report.summary, report.model_dump(), begun, *failures.lines())


@verb(*URL, *TRAIN)
def train(
    *,
    overrides: Overrides,
    run: RunFlag = DEFAULT_RUN,
    resume: Annotated[bool, switch("Resume an interrupted training from its last checkpoint.")] = False,
    force: Annotated[bool, switch("Train even on rows of another policy; the card records it.")] = False,
    plan: Annotated[bool, switch("Estimate tokens, steps, memory and time; train nothing.")] = False,
) -> Output:
    opened = _open(run, overrides)
    if plan:
        return train_plan(opened)
    with ConsoleReporter() as reporter:
        card = opened.train(reporter.training, resume=resume, force=force)
    rows = card.metrics["rows"]
    lines = [
        f"{card.version} trained from {card.parent}: {_short(card.metrics['train'])}",
        f"  {progress_line('rows', rows)}",
        f"  rows by label: {_short(rows['labels'])}",
        *(f"  no row of {label}: {why}" for label, why in rows["remedies"].items()),
        f"  {progress_line('mismatch', card.metrics['mismatch'])}",
        *([f"  KL to the base: {drift['kl']:.3g} nats per token"] if (drift := card.metrics["drift"]) else []),
        *(f"  forced: {reason}" for reason in card.metrics["forced"]),
        f"next: {next_step('deploy', card.version, '--run', run)}",
    ]
    return Output(card.model_dump(mode="json", exclude={"fingerprint"}), "\n".join(lines))


@verb(*URL)
def deploy(
    version: Annotated[str | None, Parameter(help="Version, such as v0001; default: the newest.")] = None,
    /,
    *,
    overrides: Overrides,
    run: RunFlag = DEFAULT_RUN,
    by: ByFlag = PERSON,
    reason: ReasonFlag = None,
    gate: Annotated[bool, switch("Deploy only a version that passed the gate.")] = False,
) -> Output:
    opened = _open(run, overrides)
    opened.ensure_live()
    version = version or opened.registry.versions()[-1]
    if gate and not opened.has_passed(version):
        live, step = opened.registry.live, next_step("loop", "--run", run)
        text = f"{version} has not passed the gate, so that {live} stays live; `{step}` lets the gate decide on it"
        return Output({"version": version, "live": live, "passed": False}, text, refused=True)
    return _deployment(partial(opened.deploy, version), by, reason)


@verb(*URL)
def rollback(
    *,
    overrides: Overrides,
    to: Annotated[str | None, Parameter(help="Version to return to; default: the previous live version.")] = None,
    run: RunFlag = DEFAULT_RUN,
    by: ByFlag = PERSON,
    reason: ReasonFlag = None,
) -> Output:
    return _deployment(partial(_open(run, overrides).rollback, to), by, reason)


@verb(*URL, *AGENT, *EVAL)
def evaluate(
    *,
    overrides: Overrides,
    before: Annotated[str, Parameter(help="Version to compare with; v0000 is the base model.")] = BASE,
    after: Annotated[str | None, Parameter(help="Version to compare; default: the live version.")] = None,
    run: RunFlag = DEFAULT_RUN,
    gate: Annotated[
        bool, switch("Also decide by the limits of section [gate]; only the loop records decisions.")
    ] = False,
) -> Output:
    opened = _open(run, overrides)
    opened.check_subject()
    after = after or opened.ensure_live().version
    for version in {before, after} - {BASE}:  # the base needs no card yet
        opened.registry.card(version)
    if gate and before == after:
        raise ConfigError(
            f"--gate decides between two versions, and --before and --after are both {after}; name another one"
        )
    settings, what = opened.config.eval, f"measuring {after}" if before == after else f"comparing {after} with {before}"
    with ConsoleReporter(prices=opened.config.policy.prices) as reporter:
        opened.on_tally = reporter.tally
        reporter.stage(f"{what} on up to {count(settings.n, 'task')} of the {settings.split} split")
        if before == after:
            found, plan = opened.measure(after, reporter.episodes), None
        else:
            plan = opened.plan_evaluation(before, after)
            reporter.stage(str(plan))
            found = opened.evaluate(before, after, reporter.episodes)
    sentence = finding(found)
    data = {**found.model_dump(mode="json"), "finding": sentence, "plan": plan and plan.model_dump()}
    text = f"{table(found)}\n{sentence}"
    if not gate or not isinstance(found, Comparison):
        return Output(data, text)
    decision = opened.decide(found)
    data["decision"] = decision.model_dump(mode="json")
    return Output(data, f"{text}\n{_decision(decision)}", refused=not decision.promote)


@verb(*URL, *SUBJECT, *COLLECT, *TRAIN, *ROUNDS)
def loop(
    *,
    overrides: Overrides,
    run: RunFlag = DEFAULT_RUN,
    anew: Annotated[bool, switch("Train an interrupted version anew instead of resuming it.")] = False,
) -> Output:
    opened = Run(run, overrides)
    with ConsoleReporter(prices=opened.config.policy.prices) as reporter:
        _tell_new(opened, reporter)
        opened.on_tally = reporter.tally
        report = run_loop(opened, reporter, anew=anew)
    lines = [
        f"round {r.round}{' (evaluated before)' if r.stored else ''}\n{table(r.comparison)}\n{_decision(r.decision)}\n"
        for r in report.rounds
    ]
    if all(r.stored for r in report.rounds):
        lines.append(f"no round was left: all {opened.config.loop.rounds} were evaluated before; --rounds adds more")
    lines.append(f"{report.live} is live")
    if report.live != report.champion:
        lines[-1] += (
            f", and {report.champion}, the last version that passed, is not: "
            f"`{next_step('deploy', report.champion, '--run', run)}` makes it live"
        )
    if opened.config.gate.split != opened.config.eval.split:
        lines.append(f"next: {next_step('eval', '--run', run)}     final evaluation, on tasks the gate did not use")
    refused = bool(report.rounds) and not report.rounds[-1].decision.promote
    return Output(report.model_dump(mode="json"), "\n".join(lines), refused=refused)


def _decision(decision: Decision) -> str:
    shown = (f"    {e.trajectory_id}: {printable(e.excerpt)}" for found in decision.examples.values() for e in found)
    return "\n".join([decision.text(), *shown])


def _collected(run: Run, summary: CollectSummary, data: Mapping[str, Any], *above: str) -> Output:
    """Report on a collection, and if there is something to train on."""
    live = run.ensure_live().version
    lineage = lineage_of(run.registry.policies_dir, live)
    why_not = why_untrainable(run.stored(), config=run.config.train, version=live, lineage=lineage)
    if summary.tries and not summary.tries_of_policy:
        why_not = NOT_ASKED
    elif why_not:
        why_not = f"nothing to train on yet: {why_not}"
    in_all = " in all" if summary.resumed else ""
    lines = [
        *above,
        f"{count(summary.episodes, 'episode')} ({summary.resumed} stored before), "
        f"{count(summary.tokens_sampled, 'token')} sampled{in_all}",
        *([OUTDATED.format(n=summary.outdated)] if summary.outdated else []),
        *limit_lines(summary, run.config.collect, run.config.policy.prices),
        *summary_lines(summary),
        why_not or f"next: {next_step('train', '--run', run.directory)}",
    ]
    ok = not summary.episodes or sum(summary.errors.values()) < summary.episodes
    return Output(data, "\n".join(lines), ok=ok)


def _open(run: str, overrides: Overrides) -> Run:
    """Open an existing run.

    Raises:
        ConfigError: there is no such run.
    """
    path = Path(run) / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{path}: there is no such run; collect into it first, or name another with --run")
    return Run(run, overrides)


def _tell_new(run: Run, reporter: ConsoleReporter) -> None:
    """Report that the run is a new one, and the nearest existing one, because its name may be misspelt."""
    if not run.config_file.exists():
        hint = nearest(run.directory.name, (file.parent.name for file in run.directory.parent.glob(f"*/{CONFIG_FILE}")))
        reporter.stage(f"{run.directory} is a new run; {hint}its settings will be in {run.config_file}")


def _deployment(go_live: Callable[..., DeployReport], by: str, reason: str | None) -> Output:
    with ConsoleReporter() as reporter:
        report = go_live(on_server=reporter.servers, **decided_by(by, reason))
    nothing = "base, nothing to load" if report.version == BASE else "nothing to load, the server has it"
    how = nothing if report.strategy == "none" else report.strategy
    gap = "no fingerprint" if report.fingerprint is None else f"fingerprint {report.fingerprint.gap:.2g} nats"
    lines = [f"{report.version} is live as {report.served_name} ({how}, {gap})", *report.warnings]
    return Output(report.model_dump(mode="json"), "\n".join(lines))


def _short(values: Mapping[str, Any]) -> str:
    """Format the numbers of a log on one line."""
    return ", ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, int | float))
