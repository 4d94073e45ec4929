"""Course of an episode: what one node hands to the next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from r3agent.records.trajectory import Span, Trajectory


@dataclass(frozen=True, kw_only=True)
class Course:
    """Episode as far as it has come."""

    tree: Trajectory
    frontier: Sequence[Span] = ()
    """Last spans of the failed tries that need reflections or may be retried, as `verify` found them."""
    began: float | None = None
    """Time of the beginning of the episode, as of `steady_time`; `None` if it is not known."""
    earlier: int = 0
    """Number of earlier episodes of a thread, so that a task that is asked again is not drawn alike."""
    ended: bool = False
    """True once `verify` has found nothing that is left to do."""

    def grown(self, spans: Iterable[Span], **changed: Any) -> Course:
        """Return the episode with further spans, and other changed fields of its tree."""
        return replace(self, tree=self.tree.changed(spans=(*self.tree.spans, *spans), **changed))
