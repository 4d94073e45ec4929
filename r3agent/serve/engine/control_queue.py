"""Things the engine's thread does between two steps, asked for by other threads."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass(eq=False)
class Errand:
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


class Errands:
    """In the order they were asked for."""

    def __init__(self) -> None:
        self._errands: list[Errand] = []

    def add(self, errand: Errand) -> Future[None]:
        self._errands.append(errand)
        return errand.done

    @property
    def any_ready(self) -> bool:
        return any(errand.ready() for errand in self._errands)

    @property
    def any_holds(self) -> bool:
        return any(errand.holds for errand in self._errands)

    def take_ready(self) -> list[Errand]:
        ready = [errand for errand in self._errands if errand.ready()]
        self._errands = [errand for errand in self._errands if errand not in ready]
        return ready

    def fail(self, error: Exception) -> None:
        for errand in self._errands:
            errand.done.set_exception(error)
        self._errands.clear()
