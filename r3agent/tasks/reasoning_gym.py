"""Generate problems with reasoning-gym, by the name of a generator: `reasoning-gym:chain_sum`, its settings as params.

A problem's id is a hash of the generator and the question, so that a problem is on the same side of the splits
whichever seed it comes from. Generators whose scorers cannot be relied on are refused;
`verifiers/child/reasoning_gym.py` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from itertools import count
from typing import Any

from r3agent._util.imports import require_installed
from r3agent.errors import ConfigError
from r3agent.records.trajectory import Task
from r3agent.tasks.splits import Split, distinct
from r3agent.verifiers.reasoning_gym import child

SUFFIX = "Give the final answer alone, in the format that is asked for, between <answer> and </answer> tags."

FIRST_CHUNK, LAST_CHUNK = 4, 64
"""Entries generated at once, ever twice as many, since some take a second each. Each chunk has a seed of its own: with
neighbouring seeds generators repeat themselves."""

MAX_FRUITLESS = 2_000
"""Entries in a row without a new problem, after which there are taken to be no more."""

GENERATION_S = 600.0
"""CPU time that a chunk may take."""


def generate(
    n: int | None, /, *, seed: int = 0, split: Split = "train", name: str, suffix: str = SUFFIX, **params: Any
) -> Iterator[Task]:
    """Yield `n` distinct problems of a generator; entries whose own answer does not pass its scorer are left out.

    Args:
        name: of the generator.
        suffix: what is said after the question, e.g. one of `reasoning_gym.utils.SYSTEM_PROMPTS`; may be empty.
        params: fields of the generator's config, but for its seed and size.

    Raises:
        ConfigError: as `distinct`, or there is no such generator, it is refused or does not take `params`.
    """
    require_installed("reasoning_gym", "reasoning-gym")
    problems = (_task(name, params, entry, suffix) for entry in _entries(name, params, seed))
    source, settings = f"reasoning-gym:{name}", str(params)
    return distinct(problems, n, split=split, max_fruitless=MAX_FRUITLESS, source=source, settings=settings)


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
        gold=None if answer is None else {"role": "assistant", "content": f"<answer>{answer}</answer>"},
    )
