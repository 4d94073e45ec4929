"""The embedded server dies in the middle of a collection and comes back."""

from __future__ import annotations

from pathlib import Path

from r3agent.serve import ServerProcess
from tests.support.outage import assert_collects_through_an_outage


async def test_a_collection_waits_loses_nothing_and_repeats_nothing(tmp_path: Path) -> None:
    await assert_collects_through_an_outage(
        lambda port, log: ServerProcess("bundled", port=port, log_path=log), tmp_path
    )
