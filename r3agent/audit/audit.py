"""All checks of a task source and its verifier, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain, zip_longest
from typing import Any

from r3agent.audit.answers import answer_checks
from r3agent.audit.config import AuditConfig
from r3agent.audit.contents import Drawn, content_checks
from r3agent.audit.lengths import Lengths, length_check
from r3agent.audit.probes import judge_probes
from r3agent.audit.records import Audit, Check
from r3agent.audit.served import ServedModel, served_checks
from r3agent.audit.verdicts import Trial, TrialResult, trials, verdict_checks
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks import default_verifier, is_finite, read_tasks
from r3agent.tasks.catalogue import fault_of_params
from r3agent.tasks.splits import APART
from r3agent.verifiers import VERIFIERS, find_verifier
from r3agent.verifiers.interface import close, takes_environment

IN_WORLD = "the verifier judges in the world of a try: --probe with the agent tries it"


async def audit(
    source: str,
    *,
    params: Mapping[str, Any],
    seed: int = 0,
    verifier: str = "",
    verifier_params: Mapping[str, Any],
    settings: AuditConfig,
    lengths: Lengths,
    served: ServedModel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Test the verifier on answers with known verdicts, and check the tasks.

    Args:
        verifier: name of the verifier; default the source's own.
        lengths: limits of the model.
        served: model to try some of the train tasks on.
        progress: called with (done, total) after each verdict.

    Raises:
        ConfigError: the source or the verifier cannot be used, or there is no task.
        R3Error: the served model does not answer.
    """
    if fault := fault_of_params(params):
        raise ConfigError(f"task.params: {fault}")
    verifier = verifier or default_verifier(source)
    found_verifier = find_verifier(verifier, **verifier_params)  # a wrong setting is reported before tasks are made
    n = None if is_finite(source) else settings.n
    drawn = {split: read_tasks(source, n, seed=seed, split=split, **params) for split in APART}
    tasks = _of_all_splits(drawn)
    if not tasks:
        raise ConfigError(f"task source {source!r} holds no task")
    tried = tasks[: settings.n]
    if takes_environment(found_verifier):
        verdicts = [Check(name="verdicts", status="skipped", detail=IN_WORLD)]
    else:
        results = await _judge_trials(trials(tried), verifier, verifier_params, settings, progress)
        verdicts = verdict_checks(results, tried, settings, is_shipped=verifier in VERIFIERS)
    tries: list[Check] = []
    if served is not None:
        try:
            tries = await served_checks(drawn["train"] or tasks, served, found_verifier, settings, progress)
        finally:
            await close(found_verifier)
    return Audit(
        source=source,
        verifier=verifier,
        tasks={split: len(found) for split, found in drawn.items()},
        checks=(
            *verdicts,
            *content_checks(drawn),
            *answer_checks(drawn, settings.max_same_gold),
            await length_check(tasks, lengths),
            *tries,
        ),
    )


async def _judge_trials(
    tried: list[Trial],
    verifier: str,
    params: Mapping[str, Any],
    settings: AuditConfig,
    progress: Callable[[int, int], None] | None,
) -> list[TrialResult]:
    # One round after another, so that an answer mostly goes to another process with another hash seed each time.
    results = await judge_probes(
        [trial.probe for _ in range(settings.repeats) for trial in tried],
        verifier=verifier,
        params=params,
        processes=settings.concurrency,
        timeout_s=settings.timeout_s,
        progress=progress,
    )
    step = len(tried)
    return [TrialResult(trial, tuple(r for r in results[i::step] if r is not None)) for i, trial in enumerate(tried)]


def _of_all_splits(drawn: Drawn) -> list[Task]:
    """Return distinct tasks, from each split in turn, so that the first `n` come from all splits."""
    turns = chain.from_iterable(zip_longest(*drawn.values()))
    return list({task.id: task for task in turns if task is not None}.values())
