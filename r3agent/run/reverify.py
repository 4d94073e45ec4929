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
from r3agent.store.index import EntryReader, latest_entries
from r3agent.store.shards import store_at
from r3agent.store.verdicts import (
    SpanVerdict,
    merged,
    read_layers,
    verdict_source,
    verdicts_path,
    verifiers_of,
    with_verdicts,
)
from r3agent.telemetry.tracing import within_trajectory
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
    kept: dict[str, int] = {}
    """Tries that it did not judge and that keep a verdict from below, by the verifier of that."""
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
    verify_timeout_s: float | None = 600.0,
    concurrency: AtLeastOne = 64,
    anew: bool = False,
    on_episode: Callable[[int, int], None] | None = None,
) -> ReverifyReport:
    """Judge the stored tries of a store or run directory, and add the verdicts as a layer.

    Interrupted, it goes on with the newest layer of the verifier. Where another verifier's layer counts before that,
    its verdicts are copied into a new one, and count again.

    Args:
        verifier: name of a verifier, or `module:callable`.
        params: its settings.
        cut_off: as in `collect`.
        verify_timeout_s: time limit of one verdict, in seconds; `None` for none.
        concurrency: number of episodes that are judged at a time.
        anew: begin another layer, e.g. because the code of the verifier was mended.
        on_episode: called with the numbers of episodes whose tries are judged, and of all.

    Raises:
        ConfigError: there is no such store or verifier, or it leaves all verdicts to people.
        RecordError: the verdicts cannot be written.
    """
    if verifier in WAITING:
        raise ConfigError(f"verifier {verifier!r} judges nothing; `r3agent label` adds what people say")
    found = find_verifier(verifier, **(params or {}))
    needs_environment = takes_environment(found, required=True)
    entries, layers = [*latest_entries(directory).values()], read_layers(directory)
    settings = digest([verifier, dict(params or {}), cut_off])
    newest = max((v.layer for v in layers if v.settings == settings and not anew), default=0)
    top = max((v.layer for v in layers), default=0)
    number = newest if newest and newest == top else top + 1
    own = [v for v in layers if newest and v.layer == newest]
    lower = [v for v in layers if v.layer < number]
    done, below, verifiers = {v.place: v.verdict for v in own}, merged(lower), verifiers_of(lower)

    counts, left_out, changes, kept = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    errors, fresh, written_at = list[str](), list[SpanVerdict](), monotonic()
    path, waiting, reader = verdicts_path(store_at(directory)), iter(entries), EntryReader()
    if own and number != newest:  # the other layer was made after it
        append_records(path, [verdict.model_copy(update={"layer": number}) for verdict in own])

    def write(every_s: float = 0.0) -> None:
        nonlocal written_at
        if fresh and (len(fresh) >= WRITE_N or monotonic() - written_at >= every_s):
            append_records(path, fresh)
            fresh.clear()
            written_at = monotonic()

    async def verdict_on(trajectory: Trajectory, a_try: Try) -> Verdict | None:
        place = trajectory.trajectory_id, a_try.last.span_id
        if place in done:
            counts["resumed"] += 1
            return done[place]
        with within_trajectory(trajectory.trajectory_id, is_own=True):
            (verdict,) = await judge(found, trajectory.task, [a_try], cut_off=cut_off, timeout_s=verify_timeout_s)
        of = {"trajectory_id": place[0], "span_id": place[1], "verdict": verdict}
        fresh.append(SpanVerdict.model_validate({"layer": number, "verifier": verifier, "settings": settings, **of}))
        counts["judged"] += 1
        write(WRITE_S)
        return verdict

    async def work() -> None:
        for entry in waiting:
            trajectory = with_verdicts(reader.read(entry), below)
            for a_try in trajectory.tries:
                counts["tries"] += 1
                verdict: Verdict | None = None
                if reason := _obstacle(a_try, needs_environment=needs_environment):
                    left_out[reason] += 1
                else:
                    try:
                        verdict = await verdict_on(trajectory, a_try)
                        counts["open"] += verdict is None
                    except VerifierError as error:
                        errors.append(str(error))
                if verdict is not None:
                    changes[f"{_word(a_try.verdict)}->{_word(verdict)}"] += 1
                elif source := verdict_source(trajectory, a_try, verifiers):
                    kept[source] += 1
            counts["episodes"] += 1
            if on_episode is not None:
                on_episode(counts["episodes"], len(entries))

    try:
        warm_up(found)
        await gather_all(work() for _ in range(min(concurrency, len(entries))))
    finally:
        write()
        await close(found)
    return ReverifyReport(
        verifier=verifier,
        layer=number,
        **{name: counts[name] for name in ("tries", "judged", "resumed", "open")},
        left_out=dict(left_out),
        kept=dict(sorted(kept.items())),
        errors=len(errors),
        first_error=errors[0] if errors else None,
        changes=dict(sorted(changes.items())),
    )


def _obstacle(a_try: Try, *, needs_environment: bool) -> str | None:
    if a_try.refused or a_try.error is not None:
        return "no_answer"
    return "no_environment" if needs_environment else None


def _word(verdict: Verdict | None) -> str:
    return "open" if verdict is None else "right" if verdict.passed else "wrong"
