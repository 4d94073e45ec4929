"""Tables for people."""

from __future__ import annotations

import pytest

from r3agent._util.console import columns


def test_columns_do_not_wrap_where_colours_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    assert columns([("a" * 60, "b" * 60)]) == ["a" * 60 + "  " + "b" * 60]


def test_columns_are_whole_beside_an_empty_last_one() -> None:
    assert columns([("v0000", "base", "", "")], gap=3, indent=2) == ["  v0000   base"]
