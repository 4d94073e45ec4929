"""Account of what an episode has spent, within one node of the graph."""

from __future__ import annotations

from dataclasses import dataclass, field

from r3agent._util.clock import steady_time
from r3agent.episodes.budget import Budget
from r3agent.recording.episode import Episode
from r3agent.records.cost import Prices
from r3agent.records.trajectory import Trajectory


@dataclass(frozen=True)
class Spending:
    """Account that tries which run at once share."""

    budget: Budget
    prices: Prices | None
    tree: Trajectory
    began: float | None
    """Time of the beginning of the episode; `None` if it is not known."""
    running: list[Episode] = field(default_factory=list[Episode])
    """Records of the node's tries, each of which goes on from `tree`."""

    def spent(self) -> str | None:
        """Return why nothing further may be asked; `None` if the budget is not spent."""
        grown = (span for episode in self.running for span in episode.spans[len(self.tree.spans) :])
        return self.budget.spent([*self.tree.sampled, *grown], self.began, self.prices)

    def seconds_left(self) -> float | None:
        """Return how long a try may go on; `None` without a limit."""
        if self.budget.max_seconds is None or self.began is None:
            return None
        return max(0.0, self.began + self.budget.max_seconds - steady_time())
