"""Policy cards: reports of versions, their differences, and the functions behind `r3agent policies`."""

from typing import TYPE_CHECKING

from r3agent._util.lazy import lazy_names

if TYPE_CHECKING:
    from r3agent.cards.differences import VersionDiff as VersionDiff
    from r3agent.cards.differences import diff_versions as diff_versions
    from r3agent.cards.reports import VersionCheck as VersionCheck
    from r3agent.cards.reports import VersionReport as VersionReport
    from r3agent.cards.reports import check_version as check_version
    from r3agent.cards.reports import describe as describe
    from r3agent.cards.reports import list_versions as list_versions
else:
    __getattr__, __dir__ = lazy_names(__name__)
