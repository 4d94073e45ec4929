"""What each verb does: options in, an outcome out; progress goes to stderr. Nothing here exits."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r3agent import audit as auditing
from r3agent._util.aio import run_sync
from r3agent.audit.lengths import EndpointAddress
from r3agent.cli.inspect_view import shown
from r3agent.cli.progress import Watcher
from r3agent.deploy import DeployReport
from r3agent.doctor import diagnose, report
from r3agent.errors import ConfigError
from r3agent.evaluate import table
from r3agent.records.summary import CollectSummary, summarise
from r3agent.records.versions import BASE
from r3agent.run.config import load_config, parse_override
from r3agent.run.inspect import inspect_trajectory
from r3agent.run.loop import run_loop
from r3agent.run.stages import CONFIG_FILE, Run
from r3agent.serve.process.launch import launch
from r3agent.store.labels import label as label_trajectory
from r3agent.store.models import resolve_model
from r3agent.store.registry import Registry
from r3agent.store.shards import find, store_at
from r3agent.store.trajectories import load
from r3agent.train.report import told
from r3agent.train.rows import why_untrainable
from r3agent.train.tokenizer import prompt_tokens

API_KEY = "OPENAI_API_KEY"
"""Where every verb that talks to an endpoint finds the key."""

DEFAULT_RUN = "runs/default"
"""The run directory where none is named."""


@dataclass(frozen=True)
class Outcome:
    """What a verb has to say, for machines and for people."""

    data: Mapping[str, Any]
    text: str
    ok: bool = True


def init(options: Namespace) -> Outcome:
    path = Path(options.run) / CONFIG_FILE
    if path.exists():
        raise ConfigError(f"{path} exists; edit it, or choose another directory with --run")
    from r3agent.run.demo import SETTINGS

    key, overrides, note = "sampling.max_tokens", _overrides(options), ""
    config = load_config(None, overrides)
    subject = {config.policy.model, config.policy.base_model, config.task.source}
    if key not in overrides and subject == {"bundled", "countdown"}:
        overrides[key] = SETTINGS[key]
        note = f", with {key} = {SETTINGS[key]} for the bundled policy (another model needs more)"
    Run(options.run, overrides)
    return Outcome({"config": str(path)}, f"{path} written{note}; next: r3agent collect --run {options.run}")


def serve(options: Namespace) -> Outcome:
    file = Path(options.run or "") / CONFIG_FILE
    config = load_config(file if options.run and file.exists() else None, _overrides(options)).serve
    launch(options, engine=config.engine, vllm_python=config.vllm_python, vllm_options=config.options)
    return Outcome({}, "stopped")


def doctor(options: Namespace) -> Outcome:
    key = os.environ.get(options.api_key_env, "").strip()
    if not key and options.api_key_env != API_KEY:
        raise ConfigError(f"--api-key-env {options.api_key_env}: that variable is not set; export the key in it")
    diagnosis = run_sync(diagnose(options.url, model=options.model, api_key=key or None))
    return Outcome(diagnosis.model_dump(mode="json"), report(diagnosis), ok=diagnosis.tier is not None)


def audit(options: Namespace) -> Outcome:
    file = Path(options.run or "") / CONFIG_FILE
    if options.run and not file.exists():
        raise ConfigError(f"{file}: there is no such run; leave --run out, or name another")
    overrides = _overrides(options)
    config = load_config(file if options.run else None, overrides)
    task, policy = config.task, config.policy
    with Watcher() as watcher:
        tokenizer = None
        if options.run or "policy.base_model" in overrides:
            with suppress(ConfigError):  # then the endpoint is asked, or it is estimated, and said so
                tokenizer = prompt_tokens(resolve_model(policy.base_model))
        endpoint = None
        if options.run or "policy.base_url" in overrides:
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
                progress=watcher.episodes,
            )
        )
    return Outcome(found.model_dump(mode="json"), auditing.report(found), ok=found.ok)


def collect(options: Namespace) -> Outcome:
    run = Run(options.run, _overrides(options))
    with Watcher() as watcher:
        summary = run.collect(watcher.episodes)
    stored = load(run.directory / "trajectories")
    why_not = why_untrainable(stored, config=run.config.train, version=run.ensure_live().version)
    lines = [
        f"{summary.episodes} episodes ({summary.resumed} stored before), {summary.tokens_sampled} tokens sampled",
        *_counts(summary),
        f"nothing to train on yet: {why_not}" if why_not else f"next: r3agent train --run {options.run}",
    ]
    return Outcome(summary.model_dump(), "\n".join(lines), ok=sum(summary.errors.values()) < summary.episodes)


def train(options: Namespace) -> Outcome:
    run = _open(options)
    with Watcher() as watcher:
        card = run.train(
            lambda stage, values: watcher.stage(told(stage, values)), resume=options.resume, force=options.force
        )
    rows = card.metrics["rows"]
    lines = [
        f"{card.version} trained from {card.parent}: {_short(card.metrics['train'])}",
        f"  {told('rows', rows)}",
        f"  rows by label: {_short(rows['labels'])}",
        *(f"  no row of {label}: {why}" for label, why in rows["remedies"].items()),
        f"  {told('mismatch', card.metrics['mismatch'])}",
        *(f"  forced: {reason}" for reason in card.metrics["forced"]),
        f"next: r3agent deploy {card.version} --run {options.run}",
    ]
    return Outcome(card.model_dump(mode="json", exclude={"canary"}), "\n".join(lines))


def deploy(options: Namespace) -> Outcome:
    return _deployed(_open(options).deploy(options.version))


def rollback(options: Namespace) -> Outcome:
    return _deployed(_open(options).rollback(options.to))


def evaluate(options: Namespace) -> Outcome:
    run = _open(options)
    before, after = options.before, options.after or run.ensure_live().version
    with Watcher() as watcher:
        found = (
            run.measure(after, watcher.episodes) if before == after else run.evaluate(before, after, watcher.episodes)
        )
    return Outcome(found.model_dump(mode="json"), table(found))


def loop(options: Namespace) -> Outcome:
    run = Run(options.run, _overrides(options))
    with Watcher() as watcher:
        report = run_loop(run, watcher)
    lines = [
        f"round {r.round}\n{table(r.comparison)}\n"
        f"{'passed' if r.decision.promote else 'did not pass'} the gate: {'; '.join(r.decision.reasons)}\n"
        for r in report.rounds
    ]
    lines.append(f"{report.live} is live")
    if run.config.gate.split != run.config.eval.split:
        lines.append(f"next: r3agent eval --run {options.run}     the final word, on tasks that decided nothing")
    return Outcome(report.model_dump(mode="json"), "\n".join(lines))


def inspect(options: Namespace) -> Outcome:
    words = list(options.words)
    run = Path(options.run or (words.pop(0) if words else DEFAULT_RUN))
    directory = run / "trajectories"
    if len(words) > 1:
        raise ConfigError(f"{' '.join(words)}: one trajectory at a time; r3agent inspect RUN TRAJECTORY")
    trajectories = load(directory) if directory.is_dir() else []
    if not trajectories:
        raise ConfigError(f"{directory}: no trajectories; collect some first, or name another run")
    if not words:
        whole = [t for t in trajectories if t.error is None]
        ids = [t.trajectory_id for t in whole if t.attempt is not None and t.attempt.passed is False]
        unlabelled = [t.trajectory_id for t in whole if t.answer is not None and t.passed is None]
        summary = summarise(trajectories)
        live = Registry(run).live
        lines = [
            f"{len(trajectories)} trajectories in {directory}, {summary.tokens_sampled} tokens sampled",
            *_counts(summary),
            f"live policy: {live}",
        ]
        if ids:
            lines.append(f"failed first tries, e.g. (r3agent inspect {run} ID):")
            lines += [f"  {trajectory_id}" for trajectory_id in ids[:10]]
        if unlabelled:
            lines.append(f"without a verdict, e.g. (r3agent label {run} ID --passed, or --failed):")
            lines += [f"  {trajectory_id}" for trajectory_id in unlabelled[:10]]
        return Outcome(
            {**summary.model_dump(), "live": live, "failed": ids, "unlabelled_ids": unlabelled}, "\n".join(lines)
        )
    file = run / CONFIG_FILE
    config = load_config(file if file.exists() else None, _overrides(options))
    inspection = inspect_trajectory(
        find(trajectories, words[0], str(directory)),
        trajectories,
        config=config.train,
        model=resolve_model(config.policy.base_model),
    )
    return Outcome(inspection.model_dump(mode="json"), shown(inspection))


def label(options: Namespace) -> Outcome:
    if options.passed == options.failed:
        raise ConfigError("say either --passed or --failed; r3agent label RUN TRAJECTORY --passed")
    attached = label_trajectory(
        options.run,
        options.trajectory,
        passed=options.passed,
        span_id=options.span,
        feedback=options.feedback,
    )
    said = "passed" if attached.passed else "failed"
    store = store_at(options.run)
    run = store.parent if store.name == "trajectories" else store
    return Outcome(
        attached.model_dump(mode="json"),
        f"span {attached.span_id} of trajectory {attached.trajectory_id} {said}, says {attached.by}; "
        f"next: r3agent inspect {run} {attached.trajectory_id}",
    )


def demo(options: Namespace) -> Outcome:
    from r3agent.run.demo import run_demo

    with Watcher() as watcher:
        summary, text = run_demo(Path(options.out), options.seed, watcher)
    return Outcome(summary.model_dump(), text)


COMMANDS: dict[str, Callable[[Namespace], Outcome]] = {
    "init": init,
    "serve": serve,
    "doctor": doctor,
    "audit": audit,
    "collect": collect,
    "train": train,
    "deploy": deploy,
    "rollback": rollback,
    "eval": evaluate,
    "loop": loop,
    "inspect": inspect,
    "label": label,
    "demo": demo,
}


def _open(options: Namespace) -> Run:
    """A run that exists.

    Raises:
        ConfigError: it does not.
    """
    path = Path(options.run) / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{path}: there is no such run; collect into it first, or name another with --run")
    return Run(options.run, _overrides(options))


def _overrides(options: Namespace) -> dict[str, Any]:
    """What the command line says: flags whose destination is a dotted key, then `--set`."""
    overrides = {key: value for key, value in vars(options).items() if "." in key and value is not None}
    return overrides | dict(parse_override(text) for text in options.set)


def _counts(summary: CollectSummary) -> list[str]:
    """Rates, and what the spans are good for."""
    shares = {
        "first try": summary.first_try,
        "retry after reflection": summary.retry_after_reflection,
        "blind retry": summary.retry_blind,
    }
    return [
        *(f"  {name:<24} {share:.1%}" for name, share in shares.items() if share is not None),
        *([f"  {'noisy verdicts':<24} {summary.noisy_verdicts}"] if summary.noisy_verdicts else []),
        f"  {'groups with variance':<24} {summary.groups_with_variance} of {summary.groups}",
        *(f"  {capability:<24} {count} spans" for capability, count in summary.capabilities.items()),
        *(f"    {count} x {note}" for note, count in summary.notes.items()),
        *(f"  error {kind:<18} {count} episodes" for kind, count in summary.errors.items()),
    ]


def _deployed(report: DeployReport) -> Outcome:
    nothing = "base, nothing to load" if report.version == BASE else "nothing to load, the server has it"
    how = nothing if report.strategy == "none" else report.strategy
    gap = "no canary" if report.canary is None else f"canary {report.canary.gap:.2g} nats"
    lines = [f"{report.version} is live as {report.served_name} ({how}, {gap})", *report.warnings]
    return Outcome(report.model_dump(mode="json"), "\n".join(lines))


def _short(values: Mapping[str, Any]) -> str:
    """Numbers of a log on one line."""
    return ", ".join(f"{k} {v:.4g}" for k, v in values.items() if isinstance(v, int | float))
