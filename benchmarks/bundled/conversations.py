"""Training data of the bundled policy: Countdown conversations with good and bad habits mixed in.

The mixture leaves room for improvement: first tries are often careless, and a reflection names a first step that only
sometimes leads to the target. A retry always follows the reflection.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from benchmarks.bundled.tokenizer import MAX_NUMBER
from r3agent.records.prompts import BLIND_RETRY, REFLECT, RETRY
from r3agent.records.trajectory import Message, Task
from r3agent.tasks.countdown import Step, steps


@dataclass(frozen=True)
class Mixture:
    """Shares of each kind of behaviour; the remaining share is uniformly random moves."""

    right_attempt: float
    good_hint: float
    habit_hint: float
    """Share of the bad habit: start by adding the first two numbers in order, whatever the target."""
    blind: float
    """Share of failed conversations that continue without a reflection."""


SOLVE = Mixture(right_attempt=1.0, good_hint=0.0, habit_hint=0.0, blind=0.0)
"""Only right first tries, to learn to solve problems at all."""

SKILL = Mixture(right_attempt=0.4, good_hint=0.8, habit_hint=0.05, blind=0.1)
"""Complete conversations of mostly good play: the skill of the policy."""

FOLLOW = Mixture(right_attempt=0.2, good_hint=0.8, habit_hint=0.05, blind=0.1)
"""The same with more failed tries, to learn to follow a reflection."""

HABITS = Mixture(right_attempt=0.3, good_hint=0.25, habit_hint=0.45, blind=0.25)
"""Bad habits of the policy: its last lessons are careless."""


@lru_cache(maxsize=100_000)
def first_steps(numbers: tuple[int, ...]) -> tuple[Step, ...]:
    """List the first steps whose value has a token in the tokenizer."""
    return tuple(step for step in steps(numbers) if step.value <= MAX_NUMBER)


@lru_cache(maxsize=100_000)
def good_steps(numbers: tuple[int, ...], target: int) -> tuple[Step, ...]:
    """List the first steps of a three-number problem from which one more step reaches the target."""
    return tuple(s for s in first_steps(numbers) if any(last.value == target for last in steps((s.value, *s.rest))))


def play(first: Step, target: int | None, rng: random.Random) -> tuple[str, int]:
    """Make an answer from a first step, reaching the target if possible, and return it with its value."""
    last_steps = list(steps((first.value, *first.rest)))
    last = rng.choice([s for s in last_steps if s.value == target] or last_steps)
    inner = f"( {first.left} {first.op} {first.right} )"
    inner_is_left = (last.left, last.right) == (first.value, *first.rest)
    expression = f"{inner} {last.op} {last.right}" if inner_is_left else f"{last.left} {last.op} {inner}"
    return f"<answer> {expression} </answer>", last.value


def hint(step: Step) -> str:
    return f"Start with {step.left} {step.op} {step.right} = {step.value}"


class Play(Protocol):
    """Way to play a try from a first step on; with `aim` it reaches the target if it can, else it moves anywhere."""

    def __call__(self, task: Task, first: Step, rng: random.Random, *, aim: bool) -> tuple[list[Message], int]:
        """Return the messages of the try, and the value that it ends with."""
        ...


def written(task: Task, first: Step, rng: random.Random, *, aim: bool) -> tuple[list[Message], int]:
    text, value = play(first, task.info["target"] if aim else None, rng)
    return [assistant(text)], value


def conversation(task: Task, mixture: Mixture, rng: random.Random, play_try: Play = written) -> list[Message]:
    """Make one conversation: an attempt and, if it is wrong, a reflection and a retry, or a blind retry."""
    numbers, target = tuple(task.info["numbers"]), task.info["target"]
    good = good_steps(numbers, target)
    every = first_steps(numbers)

    def attempt() -> tuple[list[Message], int]:
        if good and rng.random() < mixture.right_attempt:
            return play_try(task, rng.choice(good), rng, aim=True)
        return play_try(task, rng.choice(every), rng, aim=False)

    def reflection() -> Step:
        draw = rng.random()
        if good and draw < mixture.good_hint:
            return rng.choice(good)
        if draw < mixture.good_hint + mixture.habit_hint:
            return next(s for s in every if (s.left, s.op, s.right) == (numbers[0], "+", numbers[1]))
        return rng.choice(every)

    first_try, value = attempt()
    messages = [*task.messages, *first_try]
    if value == target:
        return messages
    if rng.random() < mixture.blind:
        return [*messages, user(BLIND_RETRY), *attempt()[0]]
    step = reflection()
    retry, _ = play_try(task, step, rng, aim=True)
    return [*messages, user(REFLECT), assistant(hint(step)), user(RETRY), *retry]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}
