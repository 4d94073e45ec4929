"""`r3agent label`: add a verdict to a stored episode, or those of a file of outcomes to many."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from r3agent._util.messages import count
from r3agent.cli.command import Output, next_step, switch, verb
from r3agent.cli.traces import export_spans_of
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Trajectory
from r3agent.store.index import lookup
from r3agent.store.labels import label as label_trajectory
from r3agent.store.shards import store_at


@verb()
def label(
    run: Annotated[str, Parameter(help="Run directory, or its trajectories/.")],
    trajectory: Annotated[str | None, Parameter(help="Id of the trajectory, or a prefix of it.")] = None,
    /,
    *,
    passed: Annotated[bool, switch("The answer was right.")] = False,
    failed: Annotated[bool, switch("The answer was wrong.")] = False,
    span: Annotated[
        str | None, Parameter(help="Try to judge: attempt, retry, or the id of a span; default: the final answer.")
    ] = None,
    feedback: Annotated[str | None, Parameter(help="Reason, for people.", allow_leading_hyphen=True)] = None,
    by: Annotated[
        str | None,
        Parameter(help="Author; default: $R3AGENT_AUTHOR, or else the process's user, for root git's user.name."),
    ] = None,
    from_: Annotated[
        Path | None,
        Parameter(
            name="--from",
            help="File of outcomes (.csv, .jsonl, .parquet): the column `episode`, and `passed` or `score` or, for all "
            "rows, --passed or --failed; `try`, `note` and `by` as needed.",
        ),
    ] = None,
) -> Output:
    if from_ is not None:
        if trajectory is not None or span is not None or feedback is not None or (passed and failed):
            raise ConfigError(
                f"--from {from_}: each row names its episode; add only --passed or --failed, and --by, for all rows"
            )
        export_spans_of(run)
        return _outcomes(run, from_, True if passed else False if failed else None, by)
    if trajectory is None:
        raise ConfigError("label: which episode? r3agent label RUN TRAJECTORY --passed, or RUN --from outcomes.csv")
    if passed == failed:
        raise ConfigError("say either --passed or --failed; r3agent label RUN TRAJECTORY --passed")
    store = store_at(run)
    found = lookup(store, trajectory)
    export_spans_of(run)
    verdict = label_trajectory(run, found, passed=passed, span_id=span, feedback=feedback, by=by)
    directory = store.parent if store.name == "trajectories" else store
    overrules = "" if verdict.overrules is None else f", overruling the verifier's {_word(verdict.overrules)}"
    return Output(
        verdict.model_dump(mode="json"),
        f"{_place(found, verdict.span_id)}: "
        f"span {verdict.span_id} of trajectory {verdict.trajectory_id} {_word(verdict.passed)}, "
        f"says {verdict.by}{overrules}; next: {next_step('inspect', directory, verdict.trajectory_id)}",
    )


def _place(trajectory: Trajectory, span_id: str) -> str:
    """Describe a try by its place in the tree."""
    same = trajectory.try_of(next(span for span in trajectory.spans if span.span_id == span_id))
    if same.label == "attempt":
        return "the first try"
    retries = [a_try for a_try in trajectory.tries if a_try.label == "retry"]
    above = trajectory.parent(same.first)
    after = "without a reflection" if same.is_blind or above is None else f"after the reflection {above.span_id}"
    number = next(i for i, a_try in enumerate(retries, start=1) if a_try.first.span_id == same.first.span_id)
    return f"retry {number} of {len(retries)}, {after}"


def _outcomes(run: str, file: Path, passed: bool | None, by: str | None) -> Output:
    from r3agent.run.outcomes import label_outcomes

    found = label_outcomes(run, file, passed=passed, by=by)
    same = [f"{n} {what}" for n, what in ((found.unchanged, "labelled so before"), (found.doubled, "said twice")) if n]
    lines = [
        f"{found.labelled} of {count(found.rows, 'row')} labelled an episode" + "".join(f", {part}" for part in same)
    ]
    for reason, examples in found.examples.items():
        n = found.left_out[reason]
        lines += [f"{n} left out, {reason}:", *(f"  {example}" for example in examples)]
        lines += [f"  and {n - len(examples)} more"] if n > len(examples) else []
    if found.columns_not_read:
        lines.append(f"columns that are not read: {', '.join(found.columns_not_read)}")
    return Output(found.model_dump(mode="json"), "\n".join(lines), ok=not found.left_out)


def _word(passed: bool) -> str:
    return "passed" if passed else "failed"
