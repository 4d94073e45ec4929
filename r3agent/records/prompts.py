"""The three requests that drive the loop, in the sense of the paper; each is an argument of `build_graph`.

The paper (arXiv 2505.24726) publishes the sense of its reflection request, not its wording. The policy is told
only that it failed: no gold answer and no error text.

Each is a Jinja template and may name what stands in `KNOWN`:

- `task.messages`, `task.tools`: the task as the policy was shown it; never what the verifier needs.
- `answer`: the failed try, without its thinking; `thinking`: what was thought before it, or "".
- `feedback`: what the verifier said of it, or "". It may contain the answer, and a prompt that passes it on leaves
  the paper.
- `attempt`: how many tries there were on this path, the failed one included.
- `reflection`: without its thinking; in the retry prompt only.
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

Kind: TypeAlias = Literal["general", "function_call", "code"]
"""Kind of answer that a task asks for."""

OF_A_TRY = ("task.messages", "task.tools", "answer", "thinking", "feedback", "attempt")
KNOWN = {"reflect_prompt": OF_A_TRY, "retry_prompt": (*OF_A_TRY, "reflection"), "blind_retry_prompt": OF_A_TRY}
"""Names that each prompt may use."""
HIDDEN = ("task.gold", "task.info")
"""Fields of a task that only the verifier may see."""


class Prompts(Record):
    """The prompts of one kind of task; `build_graph` and `collect` take them as `**prompts.model_dump()`."""

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
"""The defaults, by the kind of task."""
