"""A source and verifiers, each with one defect; imported by name, also in the processes that judge."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r3agent.records.trajectory import Task

FIRST = {"train": 0, "gate": 100, "test": 200}
SEEN: Counter[tuple[str, str]] = Counter()


def task(i: int, **parts: Any) -> Task:
    message = {"role": "user", "content": f"What is {i} + {i}?"}
    gold = {"role": "assistant", "content": f"it is {2 * i}"}
    return Task.model_validate({"id": str(i), "messages": [message], "gold": gold, **parts})


def source(n: int | None, *, seed: int, split: str) -> Iterator[Task]:
    """No defect."""
    yield from (task(FIRST[split] + i) for i in range(4))


def wrong_gold(n: int | None, *, seed: int, split: str) -> Iterator[Task]:
    for found in source(n, seed=seed, split=split):
        yield found if found.id != "2" else task(2, gold={"role": "assistant", "content": "it is 5"})


def right(task: Task, answer: str) -> bool:
    """No defect."""
    print("a verifier may print")
    return answer == f"it is {2 * int(re.findall(r'[0-9]+', task.messages[-1]['content'])[0])}"


async def right_async(task: Task, answer: str) -> bool:
    return right(task, answer)


def takes_empty(task: Task, answer: str) -> bool:
    return answer == "" or right(task, answer)


def takes_any(task: Task, answer: str) -> bool:
    return answer != ""


def flaky(task: Task, answer: str) -> bool:
    SEEN[task.id, answer] += 1
    return right(task, answer) and (task.id != "2" or SEEN[task.id, answer] % 2 == 1)


def raising(task: Task, answer: str) -> bool:
    if not answer:
        raise ValueError("no number in it")
    return right(task, answer)


def raising_always(task: Task, answer: str) -> bool:
    raise ValueError("no number in it")


def hanging(task: Task, answer: str) -> bool:
    if task.id == "0" and answer == "it is 0":
        re.match(r"(a+)+$", "a" * 60 + "b")  # never gives up Python's lock
    return right(task, answer)


class Heavy:
    """Right once it is warm."""

    def __init__(self) -> None:
        self.is_warm = False

    def warm_up(self) -> None:
        self.is_warm = True

    def __call__(self, task: Task, answer: str) -> bool:
        return self.is_warm and right(task, answer)


class StartsOnce:
    """Ends its process with every answer, and does not start in another."""

    def __init__(self, marker: str) -> None:
        if Path(marker).exists():
            raise ValueError("no memory left for another")
        Path(marker).touch()

    def __call__(self, task: Task, answer: str) -> bool:
        os._exit(7)


def sleeping(task: Task, answer: str) -> bool:
    time.sleep(60)
    return True


def dying(task: Task, answer: str) -> bool:
    if task.id == "2" and answer == "it is 4":
        os._exit(7)
    return right(task, answer)
