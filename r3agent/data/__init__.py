"""Work on stored trajectories: the functions behind `r3agent data`."""

from typing import TYPE_CHECKING

from r3agent._util.lazy import lazy_names

if TYPE_CHECKING:
    from r3agent.data.ancestry import Lineage as Lineage
    from r3agent.data.ancestry import lineage as lineage
    from r3agent.data.compaction import Compacted as Compacted
    from r3agent.data.compaction import compact as compact
    from r3agent.data.erasure import forget as forget
    from r3agent.data.exporting import Exported as Exported
    from r3agent.data.exporting import export as export
    from r3agent.data.importing import Imported as Imported
    from r3agent.data.importing import import_logs as import_logs
    from r3agent.data.merging import Merged as Merged
    from r3agent.data.merging import merge as merge
    from r3agent.data.receipts import Receipt as Receipt
    from r3agent.data.statistics import DataStats as DataStats
    from r3agent.data.statistics import stats as stats
else:
    __getattr__, __dir__ = lazy_names(__name__)
