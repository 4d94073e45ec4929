"""Task source of your own: questions about a shop's database, with the queries that answer them.

r3agent collect --run runs/shop --task examples.shop:tasks --verifier sql --n 4 --set collect.reflections=4
"""

import json
from collections.abc import Iterator
from pathlib import Path

from r3agent import Task
from r3agent.tasks.splits import draw

HERE = Path(__file__).parent
SCHEMA = (HERE / "shop.sql").read_text()
TABLES = SCHEMA.partition("INSERT")[0].strip()
SYSTEM = f"Answer with one SQLite query in a ```sql block. The tables are:\n\n{TABLES}"


def make_task(question: str, answer: str, task_id: str) -> Task:
    """Make a task whose `answer` is a query that returns the right rows; the policy never sees it."""
    return Task(
        id=task_id,
        messages=({"role": "system", "content": SYSTEM}, {"role": "user", "content": question}),
        info={"schema": SCHEMA, "answer": answer},
    )


def tasks(n: int | None, *, seed: int = 0, split: str = "all") -> Iterator[Task]:
    lines = map(json.loads, (HERE / "shop.jsonl").read_text().splitlines())
    yield from draw([make_task(x["question"], x["answer"], x["id"]) for x in lines], n, seed=seed, split=split)
