"""Whole loop on one machine, with the embedded server and a bundled policy (`r3agent demo`)."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from r3agent._util.files import disk_errors, write_atomically
from r3agent.errors import ConfigError
from r3agent.evaluate import Comparison, Difference, Evaluation, table
from r3agent.records.credit import CreditLabel
from r3agent.records.summary import Tally, summarise
from r3agent.records.trajectory import Record
from r3agent.run.config import CONFIG_FILE, Config, load_config
from r3agent.run.loop import Reporter, run_loop
from r3agent.run.stages import Run
from r3agent.serve import ServerProcess
from r3agent.serve.process.process import LocalServer
from r3agent.store.models import BUNDLED
from r3agent.store.trajectories import load
from r3agent.train.config import TrainConfig

SETTINGS: dict[str, Any] = {
    "task.source": "countdown",
    "sampling.max_tokens": 24,
    "collect.n": 256,
    "collect.reflections": 8,
    "collect.blind_retries": 0,
    "train.learning_rate": 1e-3,
    "train.max_staleness": 0,
    "train.batch_size": 128,
    "train.micro_batch_tokens": 16384,
    "eval.n": 600,
    "eval.blind_retries": 2,
    "gate.split": "test",
    "loop.rounds": 8,
    "loop.evaluate_every": 8,
}
"""Settings that differ from the defaults: a tiny policy can take many large steps in little time.

The gate may use the test split here, because it decides once, at the end, and the result is reported either way. A
second evaluation, on the gate split, would double the evaluation time.
"""

GAMES: dict[str, dict[str, Any]] = {
    "equation": SETTINGS,
    "steps": {
        **SETTINGS,
        "policy.model": "bundled-steps",
        "policy.base_model": "bundled-steps",
        "task.source": "countdown_steps",
        "agent.tools": ["r3agent.tasks.countdown_steps:combine"],
        "agent.environment": "r3agent.tasks.countdown_steps:board",
        "sampling.max_tokens": 12,
        "collect.n": 96,
        "collect.retries": 2,
        "collect.concurrency": 12,
        "train.credit": {"reflect": "retry_success", "retry": "success"},
        "train.batch_size": 64,
        "eval.blind_retries": 1,
        "loop.rounds": 10,
        "loop.evaluate_every": 10,
    },
}
"""Settings by game: Countdown by one equation, or by calls of a tool.

Both have the default recipe. A try of several steps has more to learn than a reflection, so the second also trains the
steps of retries, by comparing two after the same reflection.
"""

FLAGS = {
    "task.source": "--task",
    "policy.model": "--model",
    "policy.base_model": "--base-model",
    "agent.tools": "--tools",
    "agent.environment": "--environment",
}
"""Flags of `r3agent init` for settings of a game."""

Game: TypeAlias = Literal["equation", "steps"]

CREDITED: dict[CreditLabel, str] = {
    "attempt": "first tries",
    "reflect": "reflections",
    "retry": "retries",
    "blind_retry": "blind retries",
}
"""Plural names of the spans that training credits."""

FOR_ONE_DECISION = {"eval.n", "gate.split", "loop.evaluate_every"}
"""Settings of the demo that a run whose gate decides every round does not have."""

OF_POLICY = {"train.learning_rate", "train.batch_size", "train.micro_batch_tokens"}
"""Settings of the demo that a bundled policy needs for any task: at the paper's learning rate it learns nothing."""

SECONDS = {"start": 5.0, "collect": 13.0, "train": 10.0, "evaluate": 20.0}
"""Estimated seconds of the first stage of each kind on two idle cores; later estimates use the previous stage."""


def settings_for(config: Config) -> dict[str, Any]:
    """Return the settings that a bundled policy needs: those of its game, or those of training it on another task."""
    policy, named = config.policy, {"policy.model": "bundled", "policy.base_model": "bundled"}
    for game in GAMES.values():
        subject = [(named | game)[key] for key in ("policy.model", "policy.base_model", "task.source")]
        if subject == [policy.model, policy.base_model, config.task.source]:
            return {key: value for key, value in game.items() if key not in FOR_ONE_DECISION}
    is_bundled = policy.model == policy.base_model and policy.model in BUNDLED
    return {key: value for key, value in SETTINGS.items() if key in OF_POLICY and is_bundled}


class Cells(Record):
    """Shares of the held-out tasks."""

    first_try: float
    after_reflection: float
    blind_retry: float


class DemoSummary(Record):
    """Content of a demo's `summary.json`."""

    seed: int
    seconds: float
    """Duration of this call; for a resumed demo, without the earlier calls."""
    n_tasks: int
    before: Cells
    after: Cells
    lift_points: float
    """Change of `after_reflection`, in percentage points."""
    p_value: float
    """P-value of that change in an exact paired test."""
    policy_before: str
    policy_after: str
    tokens_sampled: int
    rounds: int
    steps_per_try: float
    """Mean number of model calls in a try."""


def run_demo(
    out: Path,
    seed: int,
    reporter: Reporter,
    *,
    settings: Mapping[str, Any] = SETTINGS,
    server: LocalServer | None = None,
    on_tally: Callable[[Tally], None] | None = None,
) -> tuple[DemoSummary, str]:
    """Run or resume the demo in `out`; return its summary and the text of the comparison.

    Args:
        settings: those of a game.
        server: server of the game's policy, which the demo starts and stops; default: the embedded one.
        on_tally: called with the counts of a collection so far, after each episode.

    Raises:
        ConfigError: `out` contains another run, or cannot be written.
        R3Error: a stage failed; the same call resumes there.
    """
    began = time.monotonic()
    settings = {**settings, "task.seed": seed, "train.seed": seed}
    _refuse_another_run(out, settings)
    about = ": 4 to 8 minutes on two idle cores" if server is None else ""  # vLLM on a CPU takes twice as long
    reporter.stage(
        f"demo in {out}: {settings['loop.rounds']} rounds of collecting and training, then a comparison{about}. "
        "What an earlier call has done is not repeated"
    )
    model = load_config(None, settings).policy.base_model
    reporter.stage(f"starting the server with the policy {model}", "start")
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with server or ServerProcess(model, log_path=out / "server.log") as served:
        opened = Run(out, {**settings, "policy.base_url": served.base_url})
        opened.on_tally = on_tally
        report = run_loop(opened, reporter)
    comparison = report.rounds[-1].comparison
    before, after, change = comparison.baseline, comparison.candidate, comparison.after_reflection
    assert change is not None  # `evaluate` collects every cell
    stores = [out / "trajectories", *out.glob("gate/v*/v*/")]
    sampled = summarise([trajectory for store in stores for trajectory in load(store)])
    summary = DemoSummary(
        seed=seed,
        seconds=round(time.monotonic() - began, 1),
        n_tasks=change.n_tasks,
        before=_cells(before),
        after=_cells(after),
        lift_points=change.points,
        p_value=change.p_value,
        policy_before=before.policy,
        policy_after=after.policy,
        tokens_sampled=sampled.tokens_sampled,
        rounds=opened.config.loop.rounds,
        steps_per_try=round(sampled.steps_per_try or 1, 2),
    )
    write_atomically(out / "summary.json", summary.model_dump_json(indent=2))
    run = shlex.quote(str(out))
    again = run if report.live == after.policy else f"{run} --after {after.policy}"
    text = f"""{table(comparison)}

{_conclusion(comparison, change, opened.config.train)}
{summary.tokens_sampled} tokens sampled, {summary.rounds} rounds, {summary.seconds:.0f} s. Everything is in {out}.

next: r3agent eval --run {again}               this table again
      r3agent inspect {run} [TRAJECTORY]     what was collected, and one conversation with its credit
      r3agent init --run runs/mine {_flags(settings)}
      r3agent loop --run runs/mine           all of it again, after `r3agent serve {model}` in another terminal"""
    return summary, text


def _flags(settings: Mapping[str, Any]) -> str:
    """Return the flags of `r3agent init` for a run on the same game."""
    given = {flag: settings[name] for name, flag in FLAGS.items() if name in settings}
    return " ".join(f"{flag} {' '.join([value] if isinstance(value, str) else value)}" for flag, value in given.items())


def _refuse_another_run(out: Path, settings: dict[str, Any]) -> None:
    file = out / CONFIG_FILE
    if not file.exists():
        return
    known = load_config(file, {})
    if known.task.source != settings["task.source"]:
        what = f"of {known.task.source}, not of {settings['task.source']}"
    elif known.task.seed != settings["task.seed"]:
        what = f"with seed {known.task.seed}, not {settings['task.seed']}"
    elif known != load_config(file, settings):
        what = "that is no demo, or whose r3.toml was edited"
    else:
        return
    raise ConfigError(f"{out} has a run {what}; choose another directory with --out")


def _cells(evaluation: Evaluation) -> Cells:
    rates = {cell: getattr(evaluation, cell) for cell in Cells.model_fields}
    return Cells(**{cell: round(rate.rate, 4) for cell, rate in rates.items()})


def _conclusion(comparison: Comparison, change: Difference, config: TrainConfig) -> str:
    trained = [CREDITED[label] for label in config.credit] + ["tries that passed"] * (config.imitate > 0)
    *others, last = trained
    training = f"Training on {', '.join(others)} and {last}" if others else f"Training on {last}"
    if change.p_value >= 0.05:
        return f"{training} made no significant difference ({change.points:+.1f} points)."
    controls = {
        "one blind retry": comparison.lift_over_blind,
        "blind retries of as many tokens": comparison.lift_at_equal_tokens,
    }
    beyond = "".join(
        f", {control.points:+.1f} of them beyond {name} (p = {control.p_value:.1g})"
        for name, control in controls.items()
        if control is not None
    )
    moved = "raised" if change.points > 0 else "lowered"
    return (
        f"{training} {moved} success after one reflection by {abs(change.points):.1f} points "
        f"(p = {change.p_value:.1g}){beyond}."
    )
