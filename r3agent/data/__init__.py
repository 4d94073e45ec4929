"""Work on stored trajectories: the functions behind `r3agent data`."""

from typing import TYPE_CHECKING

from r3agent._util.lazy import lazy_names

if TYPE_CHECKING:
    from r3agent.data.statistics import DataStats as DataStats
    from r3agent.data.statistics import stats as stats
else:
    __getattr__, __dir__ = lazy_names(__name__)
