"""Advantages of tokens by a hint: what the starting policy prefers once it has read one.

A token that is more probable after the hint has a positive advantage. Over tokens that the policy samples without the
hint, the mean gradient is that of -KL(policy | policy after the hint), as in SDPO, arXiv 2601.20802.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from r3agent._util.messages import count
from r3agent.errors import ArgumentError
from r3agent.train.mismatch import Score
from r3agent.train.row import Row

LIMIT = 2.0
"""Limit of |difference of logprobs| in nats: a token that is nearly impossible on one side would outweigh all others.
The sources have none: theirs are differences of whole distributions."""


def measure_hints(rows: Sequence[Row], score: Score) -> dict[int, list[float]]:
    """Compute log p(token | hint) - log p(token | other prompt) at each token, by the index of rows with a hint."""
    hinted = [(i, row) for i, row in enumerate(rows) if row.hint_ids_P is not None]
    if not hinted:
        return {}
    after = score([(row.hint_ids_P or [], row.completion_ids_T) for _, row in hinted])
    other = score([(row.other_ids_P or row.prompt_ids_P, row.completion_ids_T) for _, row in hinted])
    return {
        i: [max(-LIMIT, min(LIMIT, a - b)) for a, b in zip(after_T, other_T, strict=True)]
        for (i, _), after_T, other_T in zip(hinted, after, other, strict=True)
    }


def check_gaps(hints: Iterable[Sequence[int] | None], hint_gaps: Container[int]) -> None:
    """Check that every row with a hint has its factors.

    Args:
        hints: hint of each row; `None` without one.
        hint_gaps: indices of the rows with factors.

    Raises:
        ArgumentError: a row has none.
    """
    hinted = [i for i, hint in enumerate(hints) if hint is not None]
    if missing := [i for i in hinted if i not in hint_gaps]:
        raise ArgumentError(
            f"hint_gaps lacks {len(missing)} of {count(len(hinted), 'row')} with a hint, the first is {missing[0]}; "
            "pass what r3agent.train.hints.measure_hints computes to start_from"
        )
