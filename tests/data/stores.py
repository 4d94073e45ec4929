"""Stores with real episodes: of the graph, with a scripted policy."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from r3agent import Task, Trajectory, collect, load
from r3agent.testing import ScriptedPolicy

SCRIPT = {"attempt": "wrong", "reflect": ["Add.", "Multiply."], "retry": ["right", "wrong"]}


def question(name: str) -> Task:
    return Task(id=name, messages=({"role": "user", "content": f"Question {name}?"},))


def collected(directory: Path, *names: str, script: Any = SCRIPT, **metadata: Any) -> list[Trajectory]:
    """Collect one episode for each name; of the two reflections on its failure, the first leads to a right answer."""
    for name in names:
        policy = ScriptedPolicy(script)
        asyncio.run(
            collect(
                [question(name)],
                policy=policy,
                verifier=lambda task, answer: answer == "right",
                out=directory,
                reflections=2,
                metadata={"user": name, **metadata},
            )
        )
    return load(directory)
