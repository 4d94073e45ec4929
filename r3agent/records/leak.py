"""Detection of reflections that contain the answer of their own successful retry.

It compares recorded token ids, or words where a span has none, independently of the task and its verifier. The answer
of a try is its last completion, or what the agent gave in place of it. Only new parts of the accepted answer count:
runs of `RUN` tokens that are not in the reflection's prompt, which contains the task and the failed try. A reflection
leaks if it contains at least `LEAK_SHARE` of these runs.

- Runs of 3: a single operation such as `3 + 5` is one run, so a hint at the first step contains one of the answer's
  runs. Runs of 2 would also match text that merely has the same subject.
- A share of half: a copy of a whole expression contains all runs but those at its ends, a first step at most a third.
- The answer's wrapping is ignored: the beginning and end that it shares with the failed try, such as `<answer>` and
  `</answer>`, are cut off, unless fewer than `MIN_RUNS` new runs remain, of which one step would be the larger part.

It detects copying, not knowledge: it misses a final number in other words, or an answer of one operation.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import takewhile
from typing import TypeAlias

from r3agent.records.trajectory import Message, Span, Trajectory

RUN, MIN_RUNS, LEAK_SHARE = 3, 3, 0.5

Tokens: TypeAlias = Sequence[Hashable]


def leaks(trajectory: Trajectory, reflection: Span) -> bool:
    """Return True if the reflection contains the answer of one of its passed retries."""
    return leak_share(trajectory, reflection) >= LEAK_SHARE


def leak_share(trajectory: Trajectory, reflection: Span) -> float:
    """Compute the share of an answer's new runs in the reflection, the maximum over its passed retries."""
    passed = [retry.last for retry in trajectory.retries(reflection) if retry.passed]
    failed = trajectory.parent(reflection)
    if not passed or failed is None:
        return 0.0
    compared = (failed, reflection, *passed)
    recorded = reflection.prompt_token_ids and all(s.token_ids and s.answer is None for s in compared)
    prompt = reflection.prompt_token_ids if recorded else _words_of(trajectory.prompt(reflection))
    tokens = _ids if recorded else _words
    prompt_runs, reflection_runs = _runs(prompt or ()), _runs(tokens(reflection))
    return max(_share(tokens(retry), tokens(failed), prompt_runs, reflection_runs) for retry in passed)


def _share(answer: Tokens, failed: Tokens, prompt_runs: set[Tokens], reflection_runs: set[Tokens]) -> float:
    new = _runs(_unwrapped(answer, failed)) - prompt_runs
    if len(new) < MIN_RUNS:
        new = _runs(answer) - prompt_runs
    return len(new & reflection_runs) / len(new) if new else 0.0


def _unwrapped(answer: Tokens, failed: Tokens) -> Tokens:
    """Cut off the beginning and end that the answer shares with the failed try."""
    first = _common(answer, failed)
    return answer[first : len(answer) - _common(answer[first:][::-1], failed[::-1])]


def _common(a: Tokens, b: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _runs(tokens: Tokens) -> set[Tokens]:
    return {tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)}


def _ids(span: Span) -> Tokens:
    return span.token_ids or ()


def _words(span: Span) -> Tokens:
    return _words_of([span.message if span.answer is None else {"content": span.answer}])


def _words_of(messages: Sequence[Message]) -> Tokens:
    """Split the text and tool calls of messages into words and punctuation; spacing is ignored."""
    texts = [str(part) for m in messages for part in (m.get("content") or "", *_calls(m))]
    return [word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)]


def _calls(message: Message) -> list[str]:
    functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    return [str(function.get(key, "")) for function in functions for key in ("name", "arguments")]
