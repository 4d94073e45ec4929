"""Inspection of one trajectory as training sees it: every token with its label, its credit and its logprob."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from r3agent.errors import ConfigError
from r3agent.records.credit import CreditLabel, credit_label, reward
from r3agent.records.trajectory import Message, Record, Span, Task, Trajectory, Verdict
from r3agent.records.versions import BASE, is_version, version_number
from r3agent.train import Row, TrainConfig, credit_spans
from r3agent.train.lineage import lineage_of
from r3agent.train.row import WITHOUT_SIBLINGS
from r3agent.train.rows import stand_in
from r3agent.train.tokenizer import TokenTexts, token_texts

COPIED = {"span_id", "parent_id", "policy_version", "capability", "request", "text", "reasoning"}
"""Fields that an inspected span copies from the record."""

NOT_CREDITED = "not credited"
"""Reason why a span without any other reason has no credit, e.g. because `train.credit` does not name its label."""


class InspectedToken(Record):
    id: int
    text: str | None
    logprob: float | None
    """Logprob recorded when the token was sampled."""


class InspectedSpan(Record):
    """A span with its reward and credit. All of its tokens have the same label and credit.

    A step of a try has the try's reward and credit; only its own tokens are in `tokens`, and nothing between steps.
    """

    span_id: str
    parent_id: str | None
    try_id: str | None
    """First span of its try; `None` for a reflection."""
    label: CreditLabel
    policy_version: str | None
    capability: str
    request: tuple[Message, ...]
    text: str
    reasoning: str | None
    """The thinking, if the server returned it in a separate field."""
    tool_calls: tuple[dict[str, object], ...]
    verdict: Verdict | None
    answer: str | None
    """The agent's answer, if it is not the text."""
    error: str | None
    """Error that ended the try."""
    purpose: str | None
    """Purpose of a call that is not the policy's."""
    reward: float | None
    """Reward from the label's source in `train.credit`, or from the label's default source."""
    credit: float | None
    """Advantage of the span when training on this run's trajectories; `None` if it is compared with nothing."""
    no_credit: str | None
    """Reason why it has no credit, although it may be imitated: one of `train.remedies.REMEDIES` or `not credited`. A
    call in a try that is trained on may be `not_the_policy` or `refused`."""
    row: int | None
    """Index, among the rows of its try, of the one that trains it."""
    apart: str | None
    """Reason why it begins a further row of its try: one of `train.chains.APART`."""
    distill: float | None
    """Weight of this retry as an answer to the first try's prompt."""
    imitate: float | None
    """Weight of this step of a try that passed, after its own prompt."""
    leaked: bool
    """True for a reflection that contains the answer of its own retry."""
    unfinished: str | None
    """Reason why it has no whole answer, such as `length` or `context_overflow`."""
    tokens: tuple[InspectedToken, ...]
    """Tokens of the span; empty if the endpoint returned no token ids."""


class Inspection(Record):
    """Output of `r3agent inspect RUN TRAJECTORY --json`."""

    trajectory_id: str
    parent_id: str | None = None
    """Trajectory that this one branched off."""
    task: Task
    error: str | None
    version: str
    """Policy version that training would start from, the newest that sampled this trajectory."""
    no_texts: str | None
    """Reason why the tokens have no texts."""
    spans: tuple[InspectedSpan, ...]


def inspect_trajectory(
    trajectory: Trajectory, trajectories: Iterable[Trajectory], *, config: TrainConfig, model: str, policies_dir: Path
) -> Inspection:
    """Inspect a trajectory, with credit under `config` among all `trajectories` and the tokenizer of `model`."""
    sampled_by = [v for v in trajectory.policy_versions if v is not None and is_version(v)]
    version = max(sampled_by, key=version_number, default=BASE)
    lineage, stand = lineage_of(policies_dir, version), stand_in(config)
    rows, dropped, leaked, _ = credit_spans(
        trajectories,
        config=config,
        version=version,
        lineage=lineage,
        retokenise=stand,
        of=trajectory.trajectory_id,
    )
    own = [row for row in rows if row.trajectory_id == trajectory.trajectory_id]
    by_unit: dict[str, list[Row]] = {}
    for row in own:
        if row.label not in WITHOUT_SIBLINGS:
            by_unit.setdefault(row.span_id, []).append(row)
    credit = {
        step_id: (number, row)
        for rows_of_try in by_unit.values()
        for number, row in enumerate(rows_of_try)
        for step_id in row.step_ids or [row.span_id]
    }
    distill = {row.span_id: row.advantage for row in own if row.label == "distill"}
    imitated = (row for row in own if row.label == "imitate")
    imitate = {step_id: row.advantage for row in imitated for step_id in row.step_ids or [row.span_id]}
    compared = (d for d in dropped if d.label not in WITHOUT_SIBLINGS)
    reasons = {d.span_id: d.reason for d in compared if d.trajectory_id == trajectory.trajectory_id}
    texts, no_texts = _texts(trajectory, model)

    def inspected(span: Span) -> InspectedSpan:
        label = credit_label(trajectory, span)
        try_id = None if span.label == "reflect" else trajectory.try_of(span).first.span_id
        number, row = credit.get(span.span_id, (None, None))
        if (unit := try_id or span.span_id) in by_unit:
            no_credit = "not_the_policy" if span.purpose else "refused"
        else:
            no_credit = reasons.get(unit, NOT_CREDITED)
        return InspectedSpan(
            **span.model_dump(include=COPIED),
            try_id=try_id,
            tool_calls=span.tool_calls,
            verdict=span.verdict,
            answer=span.answer,
            error=_error(span),
            purpose=span.purpose,
            label=label,
            reward=reward(trajectory, span, config.credit.get(label)) if row is None else row.reward,
            credit=None if row is None else row.advantage,
            no_credit=no_credit if row is None else None,
            row=number,
            apart=row.apart if row and span.span_id == (row.step_ids or [row.span_id])[0] else None,
            distill=distill.get(span.span_id),
            imitate=imitate.get(span.span_id),
            leaked=(trajectory.trajectory_id, span.span_id) in leaked,
            unfinished=span.unfinished,
            tokens=_tokens(span, None if span.purpose else texts),
        )

    return Inspection(
        trajectory_id=trajectory.trajectory_id,
        parent_id=trajectory.parent_id,
        task=trajectory.task,
        error=_error(trajectory),
        version=version,
        no_texts=no_texts,
        spans=tuple(map(inspected, trajectory.spans)),
    )


def _error(failed: Span | Trajectory) -> str | None:
    return None if failed.error is None else f"{failed.error.kind}: {failed.error.message}"


def _texts(trajectory: Trajectory, model: str) -> tuple[TokenTexts | None, str | None]:
    """Return a function from token ids to texts, or the reason why there is none."""
    try:
        texts = token_texts(model)
    except ConfigError as error:
        return None, str(error)
    for span in trajectory.spans:
        if span.purpose is None and span.token_ids and _solid(span.text) not in _solid("".join(texts(span.token_ids))):
            return None, f"with the tokenizer of {model} they are not the recorded text; set policy.base_model"
    return texts, None


def _solid(text: str) -> str:
    """Remove whitespace, which a server may have stripped."""
    return "".join(text.split())


def _tokens(span: Span, texts: TokenTexts | None) -> tuple[InspectedToken, ...]:
    ids_T = span.token_ids or ()
    texts_T = [None] * len(ids_T) if texts is None else texts(ids_T)
    logprobs_T = [None] * len(ids_T) if span.logprobs is None else span.logprobs
    return tuple(
        InspectedToken(id=id_, text=text, logprob=logprob)
        for id_, text, logprob in zip(ids_T, texts_T, logprobs_T, strict=True)
    )
