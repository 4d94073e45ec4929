"""Task sources by name."""

from r3agent.tasks.catalogue import SOURCES, TaskSource, default_verifier, find_tasks, is_finite, read_tasks

__all__ = ["SOURCES", "TaskSource", "default_verifier", "find_tasks", "is_finite", "read_tasks"]
