"""Knowledge of endpoints: the added fields that they take or refuse, and what was logged of them."""

from __future__ import annotations

import logging
from typing import NamedTuple

from pydantic import ValidationError

from r3agent._util.messages import explain
from r3agent.records.trajectory import Task

logger = logging.getLogger(__name__)


class Subject(NamedTuple):
    """A model at an endpoint."""

    base_url: str
    model: str


class Memory:
    """Knowledge of endpoints, and what was logged; a client and its copies share it, and so do a gateway's calls."""

    def __init__(self) -> None:
        self.refused: dict[Subject, set[str]] = {}
        """Added fields that are left out of further requests."""
        self.taken: set[Subject] = set()
        """Endpoints that have answered a request with added fields."""
        self._reported: set[str] = set()

    def report(self, kind: str, message: str, *values: object) -> None:
        """Log a warning, once for each kind."""
        if kind not in self._reported:
            self._reported.add(kind)
            logger.warning(message, *values)

    def report_error(self, what: str, error: Exception) -> None:
        """Log an error of the recording, once for each kind."""
        name = type(error).__name__
        text = explain(error, Task) if isinstance(error, ValidationError) else f"{name}: {error}"
        self.report(f"{what} {name}", "%s: %s", what, " ".join(text.split())[:400])
