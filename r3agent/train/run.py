"""Training of a new policy version from trajectories and the policy that sampled them."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import orjson
from safetensors import SafetensorError
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from r3agent._util.checked import checked
from r3agent._util.files import disk_errors, write_atomically
from r3agent._util.launcher import without_leftovers
from r3agent.records.trajectory import Trajectory, each_trajectory
from r3agent.store.batches import StoredTrajectories
from r3agent.store.provenance import episode_sha256, write_episodes, write_provenance
from r3agent.store.registry import PolicyCard, create_version, write_card
from r3agent.telemetry.metrics import Metrics
from r3agent.telemetry.services import check_service
from r3agent.telemetry.tracing import NO_SPAN, TRAJECTORIES, VERSION, TraceSpan, begin, now_ns
from r3agent.train.base import check_ids, fitting, make_savable, read_config, trainer_tokenizer
from r3agent.train.checkpoints import Checkpoints, SealCheckpoints, enough_memory
from r3agent.train.config import PolicyStart, TrainConfig
from r3agent.train.divergence import StopOnDivergence
from r3agent.train.drift import DriftMeter, check_drift
from r3agent.train.fingerprint import candidate_logprobs, candidates, fingerprint
from r3agent.train.grpo import OfflineGRPOTrainer
from r3agent.train.lineage import STEPS_FILE, base_model, count_repeated, lineage_of, write_rows
from r3agent.train.mismatch import check, measure, score_rows
from r3agent.train.processes import join_processes
from r3agent.train.row import Row
from r3agent.train.rows import file_rows
from r3agent.train.signals import StopOnSignal
from r3agent.train.surprise import measure_surprise
from r3agent.train.tokenizer import Retokeniser
from r3agent.train.weights import load_model, load_tokenizer, save_weights

Progress: TypeAlias = Callable[[str, Mapping[str, Any]], None]
"""Callback at the end of each stage (`rows`, `mismatch`, every `step`, `saved`), with the stage's values."""


@checked
@without_leftovers()
def train(
    trajectories: Iterable[Trajectory],
    *,
    start: PolicyStart,
    version: str,
    out_dir: str | Path,
    config: TrainConfig | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    made_with: Mapping[str, str] | None = None,
) -> PolicyCard:
    """Train a policy on its recorded spans, and write a new version.

    `config.credit` sets the rewards of spans. The weights and the card of `version` are written to `out_dir`, which
    appears in one rename when it is complete, or not at all. Under a distributed launcher, every process calls this
    with the same arguments; the first one writes and reports progress.

    Args:
        resume: continue from the last checkpoint of an interrupted training.
        force: train even on rows of another policy; the card records it.
        made_with: hashes by name of what made the trajectories, for `provenance.json`.

    Raises:
        TrainingError: no row can be trained on, the rows are another policy's, or the training diverges.
        ConfigError: weights cannot be loaded, `out_dir` cannot be written, or there is nothing to resume.
        TrainingInterrupted: SIGTERM or Ctrl-C arrived; the current step was finished and a checkpoint saved.
    """
    config, out_dir = config or TrainConfig(), Path(out_dir)
    hashes = dict[str, str]()

    def hash_episodes(batch: list[Trajectory]) -> None:
        hashes.update((t.trajectory_id, episode_sha256(t)) for t in batch)

    if isinstance(trajectories, StoredTrajectories):
        trajectories = trajectories.watched(hash_episodes)
    else:
        trajectories = list(each_trajectory(trajectories))
        hash_episodes(trajectories)
    metrics = Metrics(config.report_to, out_dir.parent, out_dir.name, config.model_dump(mode="json"))
    processes = join_processes()
    first = processes.is_main_process
    progress = metrics.following(progress or _ignore_progress) if first else _ignore_progress
    checkpoints = Checkpoints(out_dir)
    with closing(metrics), _traced(start, version, config, first), _growing(out_dir, checkpoints, first) as directory:
        read_config(start, config)  # refuses some models before anything is read or computed
        tokenizer = load_tokenizer(start)
        retokenise = Retokeniser(tokenizer) if config.retokenise == "allow" else None
        lineage = lineage_of(out_dir.parent, start.version)
        rows, report = file_rows(
            trajectories, config=config, version=start.version, lineage=lineage, retokenise=retokenise
        )
        report = report.model_copy(update={"repeated": count_repeated(rows, out_dir.parent, start.version)})
        progress("rows", report.model_dump())
        checkpoints.bind(rows, config=config, start=start, processes=processes, resume=resume)

        model = load_model(start, config)
        make_savable(model, tokenizer, start, directory if first else None)
        check_ids(rows, model, start)
        stop = StopOnSignal()
        with fitting(start, model), enough_memory(config):
            trainer = OfflineGRPOTrainer(
                model,
                rows.dataset,
                trainer_tokenizer(tokenizer, model),
                config,
                checkpoints.directory,
                callbacks=[
                    StopOnDivergence(config),
                    StepProgress(progress, version, lambda step: trajectory_ids(rows, trainer.batches.rows_of(step))),
                    stop,
                    SealCheckpoints(checkpoints, processes),
                ],
            )
            scores = score_rows(rows, start.version, partial(trainer.logprobs, divided=True))
            surprise = measure_surprise(rows, start.version, trainer.entropies)
        trainer.start_from(scores)
        mismatch = measure(rows, scores, start.version, config).model_copy(update={"surprise": surprise})
        progress("mismatch", mismatch.model_dump())
        forced = check(mismatch, config, start, force=force)

        base = base_model(start, out_dir.parent)
        with enough_memory(config):
            meter = DriftMeter(trainer, rows, start=start, base=base, limit=config.max_drift)
        probes = candidates(rows)
        parent_logprobs = candidate_logprobs(trainer, probes)
        fits = fitting(start, model, lambda: trainer.state.global_step > 0)
        refused = checkpoints.none_if_refused(first)
        with stop.listening(trainer.accelerator), fits, enough_memory(config), refused:
            processes.wait_for_everyone()  # from here on, a signal to any process is handled
            if first:
                checkpoints.begin()
            trainer.train(resume_from_checkpoint=checkpoints.last and str(checkpoints.last))
        with enough_memory(config):
            drift = meter.measure()
        with checkpoints.none_if_refused(first):
            check_drift(drift, config, version)
            prints = fingerprint(probes, candidate_logprobs(trainer, probes), parent_logprobs)
        card = PolicyCard(
            version=version,
            name=start.name,
            kind=config.method,
            base_model=start.base_model or start.model,
            parent=start.version,
            settings=config.model_dump(mode="json"),
            metrics={
                "rows": report.model_dump(mode="json"),
                "mismatch": mismatch.model_dump(mode="json"),
                "drift": drift and drift.model_dump(mode="json"),
                "forced": forced,
                "processes": processes.num_processes,
                "distributed": trainer.accelerator.distributed_type.value,
                "steps": trainer.state.global_step,
                "train": _means(trainer.state.log_history),
                "seconds": checkpoints.seconds(),
            },
            fingerprint=prints,
        )
        state = trainer.gather_weights()
        if first:
            with disk_errors(directory, SafetensorError):
                save_weights(trainer.accelerator.unwrap_model(trainer.model), tokenizer, directory, start, state)
            lines = [orjson.dumps(entry).decode() for entry in trainer.state.log_history if "loss" in entry]
            write_atomically(directory / STEPS_FILE, "\n".join([*lines, ""]))
            write_rows(directory, rows)
            write_episodes(directory, hashes, (row.trajectory_id for row in rows))
            write_provenance(directory, made_with or {})
            write_card(directory, card)
    if first:
        checkpoints.remove()
    processes.wait_for_everyone()
    kl = {"KL to the base": f"{drift.kl:.3g}"} if drift else {}
    progress("saved", {"directory": str(out_dir), "seconds": card.metrics["seconds"], **kl})
    return card


def check_start(start: PolicyStart, config: TrainConfig) -> None:
    """Check what training needs besides rows and weights, e.g. before episodes are collected for it.

    Raises:
        ConfigError: the model or its tokenizer cannot be trained, or the service of `report_to` cannot be used.
    """
    check_service(config.report_to)
    read_config(start, config)
    load_tokenizer(start)


def trajectory_ids(rows: Sequence[Row], indices: Iterable[int]) -> list[str]:
    """Return the ids of the trajectories of some rows."""
    return [*dict.fromkeys(rows[i].trajectory_id for i in indices)]


class StepProgress(TrainerCallback):
    """Callback that reports TRL's log of each optimizer step, with the speed and the remaining seconds.

    Both are of all steps after the first one, which is slower because kernels and memory are set up in it; the first
    step has its own.

    Args:
        trajectories: returns the ids of the trajectories that a step is of.
    """

    def __init__(self, progress: Progress, version: str, trajectories: Callable[[int], list[str]]) -> None:
        self.progress, self.version, self.trajectories = progress, version, trajectories
        self.began, self.first, self.tokens = 0.0, 0, 0.0
        """Time, step and sampled tokens from which the speed counts."""
        self.ended_ns: int | None = None
        self.is_warm = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.began, self.first, self.tokens = time.perf_counter(), state.global_step, 0.0
        self.ended_ns, self.is_warm = now_ns(), False

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        if "loss" not in logs:
            return
        now = time.perf_counter()
        step, self.tokens = state.global_step, self.tokens + logs["tokens"]
        pace = {
            "tokens_per_s": self.tokens / (now - self.began),
            "seconds_left": (now - self.began) / (step - self.first) * (state.max_steps - step),
        }
        if not self.is_warm:
            self.began, self.first, self.tokens, self.is_warm = now, step, 0.0, True

        def attributes() -> dict[str, Any]:
            values = {f"r3agent.train.{name}": logs[key] for key, name in LOGGED.items() if key in logs}
            return {"r3agent.train.step": step, TRAJECTORIES: self.trajectories(step), VERSION: self.version, **values}

        if args.process_index == 0:
            begin("train_step", attributes, start_ns=self.ended_ns).end()
        self.ended_ns = now_ns()
        self.progress("step", {"step": step, "steps": state.max_steps, **logs, **pace})


def _traced(start: PolicyStart, version: str, config: TrainConfig, first: bool) -> TraceSpan:
    """Begin the span of the training, of the first process."""
    given = {VERSION: version, "r3agent.train.start": start.version, "r3agent.train.method": config.method}
    return begin(f"train {version}", lambda: given) if first else NO_SPAN


@contextmanager
def _growing(out_dir: Path, checkpoints: Checkpoints, first: bool) -> Generator[Path]:
    """Yield the directory that becomes the version; the first process creates it."""
    if not first:
        yield out_dir
        return
    with create_version(out_dir) as directory, checkpoints.whole_or_none():
        yield directory


def _ignore_progress(stage: str, values: Mapping[str, Any]) -> None:
    pass


LOGGED = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "ratio": "ratio",
    "kl": "kl",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clip_ratio",
    "cispo_clip_ratio": "clip_ratio",
}
"""Keys of TRL's log whose means over the steps go on the card, and which spans have by these names."""


def _means(history: list[dict[str, Any]]) -> dict[str, float]:
    logged = {key: [entry[key] for entry in history if entry.get(key) is not None] for key in LOGGED}
    return {key: fmean(values) for key, values in logged.items() if values}
