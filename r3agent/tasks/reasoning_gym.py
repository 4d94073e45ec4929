"""Problems from reasoning-gym's generators by name, e.g. `reasoning-gym:chain_sum`; the params are its settings.

A problem's id is a hash of the generator and the question, so that it is in the same split for every seed. Generators
with unreliable scorers are refused; `verifiers/child/reasoning_gym.py` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from typing import Any

from r3agent._util.imports import require_installed
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Message, Task
from r3agent.tasks.splits import Split, distinct
from r3agent.verifiers.reasoning_gym import child

SUFFIX = "Give the final answer alone, in the format that is asked for, between <answer> and </answer> tags."
TAGGED = "<answer>{}</answer>"

FIRST_CHUNK, LAST_CHUNK = 4, 64
"""Entries per chunk, which doubles from the first to the last, since some entries take a second. Each chunk has its own
seed: with consecutive seeds, generators repeat themselves."""

MAX_FRUITLESS = 2_000
"""Number of consecutive entries without a new problem after which the problems count as exhausted."""

GENERATION_S = 600.0
"""Limit of a chunk's CPU time."""


SHOTS_SEED = 2**32
"""Seed of the solved problems, which are the same for every seed of a run."""


def generate(
    n: int | None,
    /,
    *,
    seed: int = 0,
    split: Split = "train",
    name: str,
    suffix: str = SUFFIX,
    shots: int = 0,
    **params: Any,
) -> Iterator[Task]:
    """Yield up to `n` distinct problems of a generator, without those whose own answer does not pass its scorer.

    Args:
        name: name of the generator.
        suffix: text after the question, e.g. one of `reasoning_gym.utils.SYSTEM_PROMPTS`; may be empty.
        shots: number of solved problems before the question, as turns of the conversation; they are of the training
            split, the same in every task, and are not yielded themselves. A base model needs some. Their answers
            are tagged if the suffix names the tag <answer>, as the default does, and else bare.
        params: fields of the generator's config, except seed and size.

    Raises:
        ConfigError: as `distinct`, or there is no such generator, it is refused, it does not accept `params`, or has
            fewer than `shots` problems with a known answer.
    """
    require_installed("reasoning_gym", "reasoning-gym")

    def made(seed: int) -> Iterator[Task]:
        return (_task(name, params, entry, suffix) for entry in _entries(name, params, seed))

    rules: Any = {"max_fruitless": MAX_FRUITLESS, "source": f"reasoning-gym:{name}"}
    solved = [*distinct((t if t.gold else None for t in made(SHOTS_SEED)), shots, split="train", **rules)]
    if len(solved) != shots:
        raise ConfigError(f"{shots=}: reasoning-gym:{name} with {params} has {len(solved)} solved problems to show")
    form = TAGGED if "<answer>" in suffix else "{}"
    turns = tuple(turn for t in solved for turn in (*t.messages, _reply(form.format(t.info["entry"]["answer"]))))
    shown = {task.id for task in solved}
    asked = (None if t.id in shown else t.model_copy(update={"messages": turns + t.messages}) for t in made(seed))
    return distinct(asked, n, split=split, **rules)


def _entries(name: str, params: dict[str, Any], seed: int) -> Iterator[dict[str, Any]]:
    empty = 0
    for chunk in count():
        size = min(FIRST_CHUNK * 2**chunk, LAST_CHUNK)
        chunk_seed = int.from_bytes(sha256(f"{seed}:{chunk}".encode()).digest()[:4], "big")
        try:
            made = child("entries", name, params, chunk_seed, size, cpu_s=GENERATION_S)
        except (TimeoutError, RuntimeError) as error:
            raise ConfigError(f"reasoning-gym:{name} with {params}: {error}; change its params") from error
        if "refused" in made:
            raise ConfigError(f"reasoning-gym:{name} is refused: {made['refused']}")
        empty = 0 if made["entries"] else empty + size
        if empty >= MAX_FRUITLESS:
            return
        yield from made["entries"]


def _task(name: str, params: dict[str, Any], entry: dict[str, Any], suffix: str) -> Task:
    question, answer = entry["question"], entry["answer"]
    return Task(
        id=f"reasoning-gym:{name}:{sha256(f'{name}:{question}'.encode()).hexdigest()[:16]}",
        messages=({"role": "user", "content": f"{question}\n\n{suffix}" if suffix else question},),
        info={"generator": name, "params": params, "entry": entry},
        gold=None if answer is None else _reply(TAGGED.format(answer)),
    )


def _reply(text: str) -> Message:
    return {"role": "assistant", "content": text}
