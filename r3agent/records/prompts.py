"""The three prompts of the loop, after the paper; each is an argument of `build_graph`.

The paper (arXiv 2505.24726) describes its reflection prompt, but not its wording. The prompt says only that the try
failed: it has no gold answer and no error text.

Each prompt is a Jinja template with the variables in `KNOWN`:

- `task.messages`, `task.tools`: the task as the policy saw it, without the data for the verifier.
- `answer`: the failed try, without its thinking; `thinking`: the thinking before it, or "".
- `feedback`: the verifier's feedback on it, or "". It may contain the gold answer; a prompt that uses it departs from
  the paper.
- `attempt`: the number of tries on this path, including the failed one.
- `reflection`: the reflection without its thinking; only in the retry prompt.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from r3agent.records.trajectory import Record

REFLECT = (
    "You tried the task and your answer is wrong. Reflect on what went wrong and write a short explanation "
    "that will help you do better next time."
)
RETRY = "Now try the task again, using your reflection."
BLIND_RETRY = "Your answer is wrong. Try the task again."

GENERIC_REFLECTION = (
    "My answer was wrong. Next time I will read the task again, work through it step by step, and check the result "
    "and its form before I answer."
)
"""Reflection of the control `generic` of an evaluation, which says nothing of the task."""

NOT_RUN = "This call was not run."
"""Content of the tool messages that answer the tool calls of a failed try."""

Kind: TypeAlias = Literal["general", "function_call", "code"]
"""Kind of answer that a task asks for."""

OF_A_TRY = ("task.messages", "task.tools", "answer", "thinking", "feedback", "attempt")
KNOWN = {"reflect_prompt": OF_A_TRY, "retry_prompt": (*OF_A_TRY, "reflection"), "blind_retry_prompt": OF_A_TRY}
"""Variables of each prompt."""
HIDDEN = ("task.gold", "task.info")
"""Fields of a task that only the verifier may see."""


class Prompts(Record):
    """Prompts for one kind of task; pass them to `build_graph` and `collect` as `**prompts.model_dump()`."""

    reflect_prompt: str
    retry_prompt: str
    blind_retry_prompt: str


PROMPTS: dict[Kind, Prompts] = {
    "general": Prompts(reflect_prompt=REFLECT, retry_prompt=RETRY, blind_retry_prompt=BLIND_RETRY),
    "function_call": Prompts(
        reflect_prompt=(
            "You tried performing the task, but failed in generating the correct tool call. Reflect on what went "
            "wrong and write a short explanation that will help you do better next time."
        ),
        retry_prompt=RETRY,
        blind_retry_prompt="Your tool call is wrong. Try the task again.",
    ),
    "code": Prompts(
        reflect_prompt=(
            "You tried the task, but the code you wrote does not do what it should. Reflect on what went wrong and "
            "write a short explanation that will help you do better next time."
        ),
        retry_prompt=RETRY,
        blind_retry_prompt="Your code does not do what it should. Try the task again.",
    ),
}
"""Default prompts, by the kind of task."""
