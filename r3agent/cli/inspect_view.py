"""Console views: a summary in columns, a trajectory as a conversation (colour is credit, brightness is logprob)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.text import Text

from r3agent._util.console import columns, printable
from r3agent._util.messages import count
from r3agent.data.statistics import BRANCH, PassRate
from r3agent.evaluate.statistics import clustered
from r3agent.records.summary import CollectSummary
from r3agent.records.trajectory import Message
from r3agent.run.inspect import NOT_CREDITED, InspectedSpan, Inspection
from r3agent.store.verdicts import PEOPLE

SURE, UNSURE = -0.1, -2.3
"""Tokens with a logprob above `SURE` are dim, below `UNSURE` bold: probabilities of about 0.9 and 0.1."""

NAMES = {
    "first_try": "first try",
    "retry_after_reflection": "retry after reflection",
    "retry_blind": "blind retry",
}
"""Names of the kinds of tries."""


def rate_rows(rates: Mapping[str, PassRate]) -> list[tuple[str, ...]]:
    """Render the pass rates of a store: the mean over tasks with its interval, and the tries."""
    rows: list[tuple[str, ...]] = []
    for key, rate in rates.items():
        kind = NAMES.get(key.removeprefix(BRANCH), key)
        tries = f"{rate.passed} of {count(rate.tries, 'try')} passed"
        rows.append((f"{kind} of branches" if key.startswith(BRANCH) else kind, rate_text(rate), tries))
    return rows


def rate_text(rate: PassRate) -> str:
    """Render a pass rate, and what it is a mean of."""
    return f"{rate.rate:.1%} ({rate.low:.1%} to {rate.high:.1%}), mean of {count(rate.n_tasks, 'task')}"


def pass_rates(summary: CollectSummary) -> dict[str, PassRate]:
    """Return the pass rates of a collection, with their intervals over tasks."""
    return {
        kind: PassRate(
            **dict(clustered(found.rate, found.variance, found.n_tasks, found.tries)),
            passed=found.passed,
            tries=found.tries,
        )
        for kind, found in summary.by_task.items()
    }


def summary_lines(summary: CollectSummary, rates: Mapping[str, PassRate] | None = None) -> list[str]:
    """Render success rates and the capabilities of the spans.

    Args:
        rates: pass rates of the store, in which those of branches are apart; default: those of the collection.
    """
    rows = [
        *rate_rows(pass_rates(summary) if rates is None else rates),
        *(
            [("asked the policy", f"{summary.tries_of_policy} of {count(summary.tries, 'try')}")]
            if summary.tries_of_policy < summary.tries
            else []
        ),
        *([("steps in a try", f"{summary.steps_per_try:.1f}")] if (summary.steps_per_try or 1) > 1 else []),
        *((f"error in a try: {kind}", count(n, "try")) for kind, n in summary.try_errors.items()),
        *([("noisy verdicts", str(summary.noisy_verdicts))] if summary.noisy_verdicts else []),
        *((f"no whole answer: {reason}", count(n, "try")) for reason, n in summary.unfinished.items()),
        *((f"not whole: {reason}", count(n, "reflection")) for reason, n in summary.unfinished_reflections.items()),
        *((f"recorded prompt: {how}", count(n, "branch")) for how, n in summary.recorded_prompts.items()),
        ("groups with variance", f"{summary.groups_with_variance} of {summary.groups}"),
        *([("tokens not counted", count(summary.uncounted, "call"))] if summary.uncounted else []),
        *((capability, count(n, "span")) for capability, n in summary.capabilities.items()),
        *((f"error {kind}", count(n, "episode")) for kind, n in summary.errors.items()),
    ]
    lines = columns(rows, gap=3, indent=2, first=22)
    notes = [f"    {n} x {printable(note)}" for note, n in summary.notes.items()]
    first_error = len(rows) - len(summary.errors)
    return [*lines[:first_error], *notes, *lines[first_error:]]  # notes explain the capabilities above them


def verdict_lines(verdicts: Mapping[str, int]) -> list[str]:
    """Name the verifiers whose verdicts count, if they are several: the rates mix them."""
    if len(verdicts.keys() - {PEOPLE}) < 2:
        return []
    counts = ", ".join(f"{source} {count(n, 'try')}" for source, n in sorted(verdicts.items()))
    return [f"the verdicts that count are of several verifiers: {counts}"]


def render(inspection: Inspection) -> str:
    """Render the conversation, each try indented under its parent; without colours, with logprobs in brackets."""
    console = Console(highlight=False, soft_wrap=True)
    colour = console.is_terminal and not console.no_color
    branch = "" if inspection.parent_id is None else f", a branch of {inspection.parent_id}"
    text = Text(f"trajectory {inspection.trajectory_id}{branch}, credit as trained from {inspection.version}\n")
    if colour:
        text += Text.assemble(
            ("credit above 0", "green"), ", ", ("below 0", "red"), ", none; ",
            ("dim", "dim"), " where the policy was sure, ", ("bold", "bold"), " where it was not\n",
        )  # fmt: skip
    elif any(token.logprob is not None for span in inspection.spans for token in span.tokens):
        text.append("in brackets after each token: its logprob when it was sampled\n")
    if inspection.no_texts:
        text.append(f"no token texts: {inspection.no_texts}\n")
    text.append(_messages(inspection.task.messages, ""))
    if inspection.error:
        text.append(f"error {inspection.error}\n")
    depths: dict[str | None, int] = {None: 0}
    for span in _by_branch(inspection.spans):
        is_step = span.try_id not in (None, span.span_id)
        depths[span.span_id] = (depth := depths[span.parent_id] - is_step) + 1
        text.append(_messages(span.request, "  " * depth), "dim")
        text.append("  " * depth + _headline(span) + "\n", _style(span))
        text.append("  " * (depth + 1))
        text += _tokens(span, colour) + Text("\n")
    with console.capture() as capture:
        console.print(text, end="")
    return capture.get().rstrip("\n")


def _by_branch(spans: Sequence[InspectedSpan], parent_id: str | None = None) -> list[InspectedSpan]:
    """Order the spans depth first, each before its children."""
    return [s for span in spans if span.parent_id == parent_id for s in (span, *_by_branch(spans, span.span_id))]


def _headline(span: InspectedSpan) -> str:
    verdict = "" if span.verdict is None else " ✓" if span.verdict.passed else " ✗"
    if span.verdict is not None and span.verdict.by is not None:
        verdict += f" by {span.verdict.by}{'' if span.verdict.overruled is None else ', overruling the verifier,'}"
    why = "" if span.no_credit == NOT_CREDITED else f": {span.no_credit}"
    credit = "" if span.credit is None else f"credit {span.credit:+.2f}"
    imitated = "" if span.imitate is None else f"imitated {span.imitate:+.2f}"
    paid = " and ".join(filter(None, [credit, imitated])) or f"no credit{why}"
    step = f" step of {span.try_id}" if span.try_id not in (None, span.span_id) else ""
    call = f" ({span.purpose})" if span.purpose else ""
    apart = f", a row of its own: {span.apart}" if span.apart else ""
    failed = f", {span.error}" if span.error else ""
    earned = "" if span.reward is None else f", reward {span.reward:.2f}"
    further = f", distilled {span.distill:+.2f}" if span.distill is not None else ""
    leak = ", contains its retry's answer" if span.leaked else ""
    end = f", no whole answer: {span.unfinished}" if span.unfinished else ""
    notes = f"{earned}{further}{apart}{leak}{end}{printable(failed)}"
    version = span.policy_version or ("no version" if span.purpose else "unknown version")
    return f"{span.label}{step}{printable(call)}{verdict} {paid}{notes} [{version}, {span.capability}]"


def _tokens(span: InspectedSpan, colour: bool) -> Text:
    text = Text()
    for token in span.tokens:
        style = f"{_style(span)} {_sureness(token.logprob)}"
        text.append(f" {token.id}" if token.text is None else printable(token.text), style)
        if not colour and token.logprob is not None:
            text.append(f"[{token.logprob:.2f}]")
    if not span.tokens or span.tokens[0].text is None:
        thought = f"(thinking: {span.reasoning}) " if span.reasoning else ""
        text.append(f"{' = ' if span.tokens else ''}{printable(thought + span.text)}", _style(span))
    for call in span.tool_calls:
        text.append(f" {printable(str(call))}", _style(span))
    if span.answer is not None:
        text.append(f" answer: {printable(span.answer)}", _style(span))
    return text


def _style(span: InspectedSpan) -> str:
    if not (weight := span.credit or span.imitate):
        return "default"
    return "green" if weight > 0 else "red"


def _sureness(logprob: float | None) -> str:
    return "" if logprob is None else "dim" if logprob > SURE else "bold" if logprob < UNSURE else ""


def _messages(messages: Sequence[Message], indent: str) -> str:
    return "".join(f"{indent}{m.get('role')}: {printable(str(m.get('content') or ''))}\n" for m in messages)
