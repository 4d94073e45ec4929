"""Body of a trajectory on the page: its conversation, verdicts and tokens, without what the page does not show."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from r3agent.records.credit import credit_label
from r3agent.records.trajectory import Span, Trajectory, Verdict
from r3agent.train.tokenizer import TokenTexts

DECIMALS = 3
"""Decimals of a logprob on the page."""


class Credit(NamedTuple):
    """Reward of a span, and its advantage among its siblings; `None` if a training compares it with other tasks."""

    reward: float
    advantage: float | None
    siblings: int


def body(
    trajectory: Trajectory,
    *,
    texts: TokenTexts | None,
    credit: Mapping[tuple[str, str], Credit],
    rows: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Make the body of a trajectory.

    Args:
        texts: texts of tokens; `None` shows their ids.
        credit: by trajectory and span.
        rows: versions that were trained on a span, by its id.
    """
    number = {span.span_id: i for i, span in enumerate(trajectory.spans)}
    spans = [
        _span(trajectory, span, number, texts)
        | _credit(credit.get((trajectory.trajectory_id, _unit(trajectory, span))), rows.get(span.span_id))
        for span in trajectory.spans
    ]
    task = trajectory.task
    return _without_empty(
        {
            "id": trajectory.trajectory_id,
            "parent": trajectory.parent_id,
            "task": task.id,
            "messages": list(task.messages),
            "tools": [_tool_name(tool) for tool in task.tools],
            "gold": task.gold,
            "sample": trajectory.sample,
            "at": trajectory.created_at,
            "verifier": trajectory.verifier,
            "error": trajectory.error and {"kind": trajectory.error.kind, "message": trajectory.error.message},
            "metadata": trajectory.metadata,
            "spans": spans,
        }
    )


def _unit(trajectory: Trajectory, span: Span) -> str:
    """Return the id of the span that has the credit: a step has that of its try."""
    return span.span_id if span.label == "reflect" else trajectory.try_of(span).first.span_id


def _span(trajectory: Trajectory, span: Span, number: Mapping[str, int], texts: TokenTexts | None) -> dict[str, Any]:
    is_try = span.label != "reflect"
    pieces = _pieces(span, texts)
    return _without_empty(
        {
            "id": span.span_id,
            "up": number.get(span.parent_id or "", -1),
            "label": credit_label(trajectory, span),
            "step": trajectory.is_step(span),
            "last": is_try and trajectory.try_of(span).last is span,
            "version": span.policy_version or ("" if span.purpose else span.model),
            "purpose": span.purpose,
            "request": list(span.request),
            "reasoning": span.reasoning,
            "text": span.text,
            "calls": list(span.tool_calls),
            "answer": span.answer,
            "verdict": None if span.verdict is None else _verdict(span.verdict),
            "error": span.error and {"kind": span.error.kind, "message": span.error.message},
            "unfinished": span.unfinished,
            "capability": span.capability,
            "note": span.capability_note,
            "tokens": pieces,
            "logprobs": [round(logprob, DECIMALS) for logprob in span.logprobs or ()],
            "counts": [span.prompt_tokens, span.completion_tokens],
            "seconds": span.latency_s,
        }
    )


def _pieces(span: Span, texts: TokenTexts | None) -> list[str]:
    """Return the texts of a span's tokens, or their ids where the tokenizer is of another model."""
    ids_T = span.token_ids or ()
    if texts is not None and not span.purpose:
        pieces_T = texts(ids_T)
        if _solid(span.text) in _solid("".join(pieces_T)):
            return pieces_T
    return [f"{id_} " for id_ in ids_T]


def _solid(text: str) -> str:
    """Remove whitespace, which a server may have stripped."""
    return "".join(text.split())


def _verdict(verdict: Verdict) -> dict[str, Any]:
    kept = {"passed": verdict.passed, "overruled": verdict.overruled}  # False says something
    return _without_empty(verdict.model_dump(exclude={*kept})) | {k: v for k, v in kept.items() if v is not None}


def _credit(credit: Credit | None, trained: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"trained": trained} if trained else {}
    if credit is not None:
        found |= {"reward": round(credit.reward, 4), "of": credit.siblings}
        if credit.advantage is not None:
            found["advantage"] = round(credit.advantage, 4)
    return found


def _tool_name(tool: Mapping[str, Any]) -> str:
    function = tool.get("function")
    return str(function.get("name") if isinstance(function, Mapping) else tool.get("name"))


def _without_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, "", [], (), {}, False)}
