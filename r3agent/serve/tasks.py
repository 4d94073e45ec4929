"""Things the engine's thread does between two steps, asked for by other threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass(eq=False)
class Task:
    """Run once it is `ready`."""

    ready: Callable[[], bool]
    run: Callable[[], None]
    holds: bool = False
    """No row joins the batch before it has run."""
    done: Future[None] = field(default_factory=Future)

    def __call__(self) -> None:
        try:
            self.run()
        except Exception as error:
            self.done.set_exception(error)
        else:
            self.done.set_result(None)


class TaskList:
    """In the order they were asked for."""

    def __init__(self) -> None:
        self._tasks: list[Task] = []

    def add(self, task: Task) -> Future[None]:
        self._tasks.append(task)
        return task.done

    @property
    def any_ready(self) -> bool:
        return any(task.ready() for task in self._tasks)

    @property
    def any_holds(self) -> bool:
        return any(task.holds for task in self._tasks)

    def take_ready(self) -> list[Task]:
        ready = [task for task in self._tasks if task.ready()]
        self._tasks = [task for task in self._tasks if task not in ready]
        return ready

    def fail(self, error: Exception) -> None:
        for task in self._tasks:
            task.done.set_exception(error)
        self._tasks.clear()
