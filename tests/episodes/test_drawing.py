"""The drawings show the loop."""

from __future__ import annotations

from typing import Any

from langgraph.graph import START, StateGraph

from r3agent import build_graph
from r3agent.episodes.state import EpisodeState
from r3agent.testing import ScriptedPolicy
from tests.episodes.episodes import right

MERMAID = """\
	__start__ --> attempt;
	attempt --> verify;
	reflect --> retry;
	retry --> verify;
	verify -.-> __end__;
	verify -.-> reflect;
	verify -.-> retry;
"""


def drawing() -> Any:
    return build_graph(policy=ScriptedPolicy(""), verifier=right).compile().get_graph()


def test_mermaid_has_the_arrows_of_the_loop() -> None:
    assert MERMAID in drawing().draw_mermaid()


def test_in_plain_text_the_loop_reads_from_top_to_bottom() -> None:
    drawn = drawing().draw_ascii()
    places = [drawn.index(f"| {name} |") for name in ("__start__", "attempt", "verify", "reflect", "retry")]
    assert places == sorted(places)


def test_inside_an_application_xray_shows_it() -> None:
    parent = StateGraph(EpisodeState)
    parent.add_node("solve", build_graph(policy=ScriptedPolicy(""), verifier=right).compile())
    parent.add_edge(START, "solve")
    drawn = parent.compile().get_graph(xray=True).draw_mermaid()
    for arrow in ("attempt --> ", "reflect --> ", "retry --> ", "verify -.-> "):
        assert f"\tsolve\\3a{arrow}solve\\3a" in drawn
