"""Plain-text report of a diagnosis."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from r3agent._util.console import columns
from r3agent.doctor.generation import MODES
from r3agent.doctor.records import Diagnosis
from r3agent.records.trajectory import Capability

MEANING: dict[Capability | None, str] = {
    "trainable-exact": "trainable-exact: what it samples is recorded token by token, and trained on",
    "trainable-retokenised": "trainable-retokenised: its text is tokenised again for training, which may differ",
    "eval-only": "eval-only: good for measuring, not for training",
    None: "no use: no chat completion came",
}
NEXT: dict[Capability | None, str] = {
    "trainable-retokenised": "to reach trainable-exact:",
    "eval-only": "to reach a trainable tier:",
    None: "to use it:",
}
MAX_DETAIL, MAX_NAMES = 160, 5


def report(diagnosis: Diagnosis) -> str:
    """Render the tier, one line per check, and the remedies."""
    return "\n".join(_lines(diagnosis))


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    model = "" if diagnosis.model is None else f", model {diagnosis.model!r}"
    yield f"{diagnosis.base_url}{model}"
    yield MEANING[diagnosis.tier]
    lossy = [check.name for check in diagnosis.checks if check.name in MODES and check.status == "no"]
    if diagnosis.tier == "trainable-exact" and lossy:
        yield f"but not in every mode: no {'; no '.join(lossy)}"
    yield ""
    made = [check for check in diagnosis.checks if check.status != "skipped"]
    yield from columns((check.name, check.status, _cut(check.detail)) for check in made)
    for reason, names in _grouped((c.detail, c.name) for c in diagnosis.checks if c.status == "skipped"):
        yield f"skipped, {reason}: {'; '.join(names) if len(names) <= MAX_NAMES else f'the other {len(names)} checks'}"
    if diagnosis.next_steps:
        yield f"\n{NEXT[diagnosis.tier]}"
        yield from (f"  {step}" for step in diagnosis.next_steps)
    rest = _grouped((c.remedy, c.name) for c in made if c.remedy and c.remedy not in diagnosis.next_steps)
    if rest:
        yield "\nwhat would change the rest:"
        yield from (f"  {'; '.join(names)}: {remedy}" for remedy, names in rest)


def _grouped(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    """Group the names that have the same reason."""
    groups: dict[str, list[str]] = {}
    for reason, name in pairs:
        groups.setdefault(reason, []).append(name)
    return [*groups.items()]


def _cut(text: str) -> str:
    """Cut a message in the middle: it begins with the cause and ends with the remedy."""
    line, end = " ".join(text.split()), MAX_DETAIL // 2
    return line if len(line) <= MAX_DETAIL else f"{line[: MAX_DETAIL - end - 5]} ... {line[-end:]}"
