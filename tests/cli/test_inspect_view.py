"""Views of a run."""

from __future__ import annotations

from r3agent.cli.inspect_view import summary_lines
from r3agent.records.summary import summarise


def test_summary_has_notes_between_capabilities_and_errors() -> None:
    counts = {"capabilities": {"eval-only": 7}, "notes": {"no token ids": 7}, "errors": {"RequestError": 2}}
    assert summary_lines(summarise([]).model_copy(update=counts)) == [
        "  groups with variance     0 of 0",
        "  eval-only                7 spans",
        "    7 x no token ids",
        "  error RequestError       2 episodes",
    ]
