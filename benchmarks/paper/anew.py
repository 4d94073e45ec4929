"""An agent that retries in a conversation of its own, as Reflexion does (arXiv 2303.11366), for small models.

In the conversation of the paper, a model of 0.5B repeats the wrong answer that it reads there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r3agent.errors import ConfigError
from r3agent.records.prompts import PROMPTS, RETRY

ANEW = "benchmarks.paper.anew:anew"
"""Name of the agent in settings."""
BLIND = tuple(prompts.blind_retry_prompt for prompts in PROMPTS.values())
NOTE = "{question}\n\nNote on an earlier answer, which was wrong:\n{reflection}"
"""Last message of a retry."""
TEMPERATURE = 0.4
"""That of the tries; reflections have the setting of the run, 1 if they are trained."""


def settings() -> dict[str, Any]:
    """Return what results depend on, for keys."""
    return {"note": NOTE, "temperature": TEMPERATURE}


def check(prompts: Mapping[str, str], max_attempts: int) -> None:
    """Check that retries can be recognised, by the texts of their requests and by their place.

    Raises:
        ConfigError: they cannot, and would continue the conversation.
    """
    for key, known in {"retry_prompt": (RETRY,), "blind_retry_prompt": BLIND}.items():
        if prompts[key] not in known:
            raise ConfigError(f"prompts.{key} = {prompts[key]!r}: {ANEW} knows the default alone; leave it out")
    if max_attempts > 2:
        raise ConfigError(f"collect.max_attempts = {max_attempts}: {ANEW} makes one retry; set it to 2")


async def anew(messages: list[dict[str, Any]], client: Any) -> str:
    """Answer the task alone, in a retry with the reflection, and without the failed answer."""
    completion = await client.chat.completions.create(
        model="policy", messages=prompt_of(messages), temperature=TEMPERATURE
    )
    return completion.choices[0].message.content


def prompt_of(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the model gets to read; a blind retry reads what the first try did.

    Args:
        messages: the task; for a retry, also the failed answer, the request for a reflection, the reflection and the
            request for the retry, and for a blind one the failed answer and the request.
    """
    request = messages[-1]["content"]
    if request in BLIND:
        return messages[:-2]
    if request != RETRY:
        return messages
    *before, question = messages[:-4]
    text = NOTE.format(question=question["content"], reflection=messages[-2]["content"])
    return [*before, {**question, "content": text}]
