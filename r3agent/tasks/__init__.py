"""Task sources by name."""

from r3agent.tasks.catalogue import NO_SOURCE, SOURCES, TaskSource, default_verifier, find_tasks, is_finite, read_tasks
from r3agent.tasks.recorded import RECORDED, in_run, split_by_prompt

__all__ = [
    "NO_SOURCE",
    "RECORDED",
    "SOURCES",
    "TaskSource",
    "default_verifier",
    "find_tasks",
    "in_run",
    "is_finite",
    "read_tasks",
    "split_by_prompt",
]
