"""Task sources by name."""

from r3agent.tasks.catalogue import NO_SOURCE, SOURCES, TaskSource, default_verifier, find_tasks, is_finite, read_tasks

__all__ = ["NO_SOURCE", "SOURCES", "TaskSource", "default_verifier", "find_tasks", "is_finite", "read_tasks"]
