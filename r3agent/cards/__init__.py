"""Policy cards: reports of versions, model cards and exports; the functions behind `policies` and `export`."""

from typing import TYPE_CHECKING

from r3agent._util.lazy import lazy_names

if TYPE_CHECKING:
    from r3agent.cards.differences import VersionDiff as VersionDiff
    from r3agent.cards.differences import diff_versions as diff_versions
    from r3agent.cards.exports import ExportReport as ExportReport
    from r3agent.cards.exports import export_version as export_version
    from r3agent.cards.hub import HubRepository as HubRepository
    from r3agent.cards.readme import model_card as model_card
    from r3agent.cards.reports import VersionCheck as VersionCheck
    from r3agent.cards.reports import VersionReport as VersionReport
    from r3agent.cards.reports import check_version as check_version
    from r3agent.cards.reports import describe as describe
    from r3agent.cards.reports import list_versions as list_versions
else:
    __getattr__, __dir__ = lazy_names(__name__)
