"""Detection of reflections that contain the answer of their own successful retry.

Measured on recorded token ids, or on words where a span has none, whatever the task and its verifier are. Of the
accepted answer only what is new counts: runs of `RUN` tokens that the reflection's prompt, which holds the task and
the failed try, does not contain yet. A reflection that contains `LEAK_SHARE` of them, or more, gives the answer away.

- Runs of 3: a single operation such as `3 + 5` is one of them, so a hint that names the first step has one of the
  answer's runs; two tokens would also be shared by what merely speaks of the same things.
- Half of them: a whole expression copied has all but those at its ends, a first step has a third at most.
- How the answer is wrapped is not part of it: what it begins and ends with as the failed try did, such as
  `<answer>` and `</answer>`, is left out, unless fewer than `MIN_RUNS` new runs remain: then one step would be most
  of what is left.

It sees copying, not knowledge: a final number named in other words, or an answer of one operation, is not a leak here.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from itertools import takewhile
from typing import TypeAlias

from r3agent.records.trajectory import Generation, Message, Span, Trajectory

RUN, MIN_RUNS, LEAK_SHARE = 3, 3, 0.5

Tokens: TypeAlias = Sequence[Hashable]


def leaks(trajectory: Trajectory, reflection: Span) -> bool:
    """Return True if the reflection contains the answer of a retry of its own that passed."""
    return leak_share(trajectory, reflection) >= LEAK_SHARE


def leak_share(trajectory: Trajectory, reflection: Span) -> float:
    """Compute the share of the answer's new runs that the reflection contains, the largest over retries that passed."""
    passed = [retry for retry in trajectory.children(reflection, "retry") if retry.passed]
    failed = trajectory.parent(reflection)
    if not passed or failed is None:
        return 0.0
    recorded = reflection.prompt_token_ids and all(s.token_ids for s in (failed, reflection, *passed))
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
    """Cut off the beginning and end that the answer has in common with the failed try."""
    first = _common(answer, failed)
    return answer[first : len(answer) - _common(answer[first:][::-1], failed[::-1])]


def _common(a: Tokens, b: Tokens) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _runs(tokens: Tokens) -> set[Tokens]:
    return {tuple(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)}


def _ids(generation: Generation) -> Tokens:
    return generation.token_ids or ()


def _words(generation: Generation) -> Tokens:
    return _words_of([generation.message])


def _words_of(messages: Sequence[Message]) -> Tokens:
    """Split the text and calls of messages into words and signs; spacing does not count."""
    texts = [str(part) for m in messages for part in (m.get("content") or "", *_calls(m))]
    return [word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)]


def _calls(message: Message) -> list[str]:
    functions = [call.get("function") or {} for call in message.get("tool_calls") or ()]
    return [str(function.get(key, "")) for function in functions for key in ("name", "arguments")]
