"""Verdicts on stored answers again, without sampling: a verifier that was mended, or another one.

They are a layer over the recorded ones, which stay; labels of people count before both. A try whose verifier needs the
world in which it was made cannot be judged again, because that is gone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

from r3agent._util.aio import gather_all
from r3agent._util.checked import AtLeastOne, checked
from r3agent.errors import ConfigError, VerifierError
from r3agent.records.trajectory import Record, Trajectory, Try, Verdict
from r3agent.run.directory import WAITING, digest
from r3agent.store.append import append_records
from r3agent.store.shards import latest, read, store_at
from r3agent.store.verdicts import SpanVerdict, read_layers, verdicts_path, with_layers
from r3agent.verifiers import close, find_verifier, judge, warm_up
from r3agent.verifiers.interface import CutOff, takes_environment

WRITE_S, WRITE_N = 2.0, 256
"""Longest time and largest number of verdicts in memory that an interruption loses."""


class ReverifyReport(Record):
    """Report on a layer of verdicts."""

    verifier: str
    layer: int
    tries: int
    """Number of stored tries."""
    judged: int
    resumed: int
    """Tries that an earlier call judged."""
    open: int
    """Tries whose verdict the verifier leaves open: the one below counts."""
    left_out: dict[str, int] = {}
    """Tries that cannot be judged: those with `no_answer`, and those with `no_environment` for the verifier."""
    errors: int = 0
    """Tries on which the verifier failed; the next call judges them again."""
    first_error: str | None = None
    changes: dict[str, int] = {}
    """Number of tries of the layer by the verdict before and after, e.g. `right->wrong`."""


@checked
async def reverify(
    directory: str | Path,
    verifier: str,
    *,
    params: Mapping[str, Any] | None = None,
    cut_off: CutOff = "fail",
    verify_timeout_s: float | None = None,
    concurrency: AtLeastOne = 64,
    anew: bool = False,
    on_try: Callable[[int, int], None] | None = None,
) -> ReverifyReport:
    """Judge the stored tries of a store or run directory, and add the verdicts as a layer.

    Interrupted, it goes on with the newest layer of the verifier.

    Args:
        verifier: name of a verifier, or `module:callable`.
        params: its settings.
        cut_off: as in `collect`.
        verify_timeout_s: time limit of one verdict.
        concurrency: number of tries that are judged at a time.
        anew: begin another layer, e.g. because the code of the verifier was mended.
        on_try: called with the numbers of tries that are judged, and of all.

    Raises:
        ConfigError: there is no such store or verifier, or it leaves all verdicts to people.
        RecordError: the verdicts cannot be written.
    """
    if verifier in WAITING:
        raise ConfigError(f"verifier {verifier!r} judges nothing; `r3agent label` adds what people say")
    found = find_verifier(verifier, **(params or {}))
    trajectories, layers = latest(read(directory)), read_layers(directory)
    settings = digest([verifier, dict(params or {}), cut_off])
    own = [v.layer for v in layers if v.settings == settings]
    number = max(own) if own and not anew else max((v.layer for v in layers), default=0) + 1
    done = {v.place: v for v in layers if v.layer == number}
    before = with_layers(trajectories, [v for v in layers if v.layer < number])

    left_out: Counter[str] = Counter()
    todo: list[tuple[Trajectory, Try]] = []
    n_tries = 0
    for trajectory in before:
        for a_try in trajectory.tries:
            n_tries += 1
            if reason := _obstacle(a_try, needs_environment=takes_environment(found, required=True)):
                left_out[reason] += 1
            elif (trajectory.trajectory_id, a_try.last.span_id) not in done:
                todo.append((trajectory, a_try))

    path, fresh, errors, written_at = verdicts_path(store_at(directory)), list[SpanVerdict](), list[str](), monotonic()
    n_resumed, waiting = len(done), iter(todo)

    def write(every_s: float = 0.0) -> None:
        nonlocal written_at
        if fresh and (len(fresh) >= WRITE_N or monotonic() - written_at >= every_s):
            append_records(path, fresh)
            fresh.clear()
            written_at = monotonic()

    async def work() -> None:
        for trajectory, a_try in waiting:
            try:
                (verdict,) = await judge(found, trajectory.task, [a_try], cut_off=cut_off, timeout_s=verify_timeout_s)
            except VerifierError as error:
                errors.append(str(error))
                continue
            judged = SpanVerdict(
                layer=number,
                verifier=verifier,
                settings=settings,
                trajectory_id=trajectory.trajectory_id,
                span_id=a_try.last.span_id,
                verdict=verdict,
            )
            done[judged.place] = judged
            fresh.append(judged)
            write(WRITE_S)
            if on_try is not None:
                on_try(len(done) - n_resumed + len(errors), len(todo))

    try:
        warm_up(found)
        await gather_all(work() for _ in range(min(concurrency, len(todo))))
    finally:
        write()
        await close(found)
    return ReverifyReport(
        verifier=verifier,
        layer=number,
        tries=n_tries,
        judged=len(done) - n_resumed,
        resumed=n_resumed,
        open=sum(v.verdict is None for v in done.values()),
        left_out=dict(left_out),
        errors=len(errors),
        first_error=errors[0] if errors else None,
        changes=_changes(before, done),
    )


def _obstacle(a_try: Try, *, needs_environment: bool) -> str | None:
    if a_try.refused or a_try.error is not None:
        return "no_answer"
    return "no_environment" if needs_environment else None


def _changes(before: list[Trajectory], layer: Mapping[tuple[str, str], SpanVerdict]) -> dict[str, int]:
    """Count the tries by their verdicts before and after; one that was left open stays as it was."""
    counts: Counter[str] = Counter()
    for trajectory in before:
        for a_try in trajectory.tries:
            judged = layer.get((trajectory.trajectory_id, a_try.last.span_id))
            if judged is not None and judged.verdict is not None:
                counts[f"{_word(a_try.verdict)}->{_word(judged.verdict)}"] += 1
    return dict(sorted(counts.items()))


def _word(verdict: Verdict | None) -> str:
    return "open" if verdict is None else "right" if verdict.passed else "wrong"
