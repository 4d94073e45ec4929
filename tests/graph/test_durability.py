"""An episode whose process is killed: it is taken up and finishes, and no answered request is made again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from r3agent import EndpointError, build_graph
from r3agent.testing import HANG, ScriptedEndpoint, ScriptedPolicy
from tests.graph.episodes import INPUT, labels, on_thread, right, tree
from tests.graph.mortal import Episode, living, run_in, wait_for
from tests.graph.savers import Where

BRANCHES: Any = {"reflections": 3, "blind_retries": 1}
SHAPE = {"attempt": 1, "reflect": 3, "retry": 3 + 1}


class Answering:
    """Says what was asked for, and remembers every choice that it was asked for."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()

    def __call__(self, body: dict[str, Any], choice: int) -> str:
        said = f"{choice} after {' | '.join(message['content'] for message in body['messages'])}"
        self.answered[said] += 1
        return said


def episode(endpoint: ScriptedEndpoint, where: Where, limits: Any = BRANCHES, **more: Any) -> Episode:
    return Episode(endpoint.url, where, uuid4().hex, limits, **more)


def is_whole(output: Any, answering: Answering) -> bool:
    """Every answer was given once and stands in the one trajectory."""
    trajectory = tree(output)
    return (
        Counter(span.label for span in trajectory.spans) == SHAPE
        and Counter(span.text for span in trajectory.spans) == answering.answered
        and set(answering.answered.values()) == {1}
    )


def faults(answered: int, hanging: int) -> Sequence[Any]:
    return [None] * answered + [HANG] * hanging


@pytest.mark.parametrize("is_async", [True, False], ids=["ainvoke", "invoke"])
def test_killed_again_and_again_it_finishes(on_disk: Where, is_async: bool) -> None:
    answering = Answering()
    # the first attempt; the request for reflections; two of four retries; one of the two that are left
    script = [HANG, None, HANG, None, None, None, HANG, HANG, None, HANG]
    with ScriptedEndpoint(answering, faults=script) as endpoint:
        started = episode(endpoint, on_disk, is_async=is_async)
        for is_new, kept, hanging in ((True, 0, 1), (False, 0, 1), (False, 2, 2), (False, 1, 1)):
            with living(started, is_new=is_new) as process:
                wait_for(process, *["kept"] * kept)
                endpoint.wait_for_hanging(hanging)
            endpoint.wait_for_hanging(0)
        output = run_in(started, is_new=False)
    assert is_whole(output, answering)


def test_killed_while_it_verifies_it_asks_for_no_other_attempt(on_disk: Where) -> None:
    answering = Answering()
    with ScriptedEndpoint(answering) as endpoint:
        started = episode(endpoint, on_disk, verifies=False)
        with living(started) as process:
            wait_for(process, "verifying")
        output = run_in(started, is_new=False)
    assert is_whole(output, answering)


@pytest.mark.parametrize("call", ["invoke", "ainvoke"])
async def test_after_an_error_of_one_request_the_others_are_not_made_again(call: str) -> None:
    policy = ScriptedPolicy({"attempt": "wrong", "reflect": "hm", "retry": ["a", EndpointError("down"), "b", "c"]})
    app = build_graph(policy=policy, verifier=right, reflections=2, retries=1, blind_retries=0).compile(InMemorySaver())

    async def run(start: Any) -> Any:
        return app.invoke(start, on_thread()) if call == "invoke" else await app.ainvoke(start, on_thread())

    with pytest.raises(EndpointError, match="down"):
        await run(INPUT)
    output = await run(None)
    assert Counter(labels(output)) == {"attempt": 1, "reflect": 2, "retry": 2}
    assert [span.text for span in tree(output).spans if span.label == "retry"] == ["a", "b"]
    assert len(policy.calls) == 2 + 2 + 1
