"""Tools: what the policy sees of them, what it is told, and what is refused."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from langchain_core.messages import ToolMessage
from langchain_core.tools import InjectedToolArg, InjectedToolCallId, StructuredTool, ToolException, tool
from pydantic import BaseModel

from r3agent import ConfigError, build_graph
from r3agent.testing import ScriptedPolicy
from tests.episodes.agents.scripts import ANSWER, Worlds, answers, calling, episode, told


class Place(BaseModel):
    x: int
    y: int = 0


def find(place: Place, note: str = "none") -> dict[str, Any]:
    """Find what is at a place."""
    return {"x": place.x, "y": place.y, "note": note}


async def later(name: str) -> str:
    """Answer later."""
    await asyncio.sleep(0)
    return name


@tool
def double(n: int) -> int:
    """Double a number."""
    return 2 * n


@tool
async def adouble(n: int) -> int:
    """Double a number."""
    return 2 * n


@tool
def with_world(n: int, world: Annotated[Any, InjectedToolArg], call_id: Annotated[str, InjectedToolCallId]) -> str:
    """Put a number into the world."""
    world.append(n)
    return f"{call_id}: {world}"


@tool
def in_environment(n: int, environment: Any) -> str:
    """Put a number into the world."""
    environment.append(n)
    return str(environment)


class Lookup:
    """A tool with a definition of its own."""

    definition: Any = {
        "type": "function",
        "function": {
            "name": "lookup",
            "description": "Look a key up.",
            "parameters": {"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"]},
        },
    }

    def __call__(self, key: str, environment: Any) -> str:
        return f"{key} in {environment}"


@pytest.mark.parametrize(
    ("given", "arguments", "text"),
    [
        (find, {"place": {"x": 1}}, '{"x": 1, "y": 0, "note": "none"}'),
        (later, {"name": "a"}, "a"),
        (double, {"n": 2}, "4"),
        (adouble, {"n": 2}, "4"),
        (with_world, {"n": 2}, "call-0: [2]"),
        (in_environment, {"n": 2}, "[2]"),
        (Lookup(), {"key": "k"}, "k in []"),
        (StructuredTool.from_function(later, name="wait", coroutine=later), {"name": "b"}, "b"),
    ],
)
async def test_tool_of_each_kind_is_run_and_seen(given: Any, arguments: Any, text: str) -> None:
    assert await told(given, arguments, environment=Worlds()) == text
    policy = answers(ANSWER)
    await episode(policy, tools=[given], environment=Worlds())
    [seen] = policy.calls[0].tools
    assert seen["function"]["parameters"]["properties"].keys() == arguments.keys() | (
        {"note"} if given is find else set()
    )
    assert seen["function"]["description"]


@dataclasses.dataclass
class Row:
    id: int
    price: float


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Row(1, 2.5), '{"id": 1, "price": 2.5}'),
        (Place(x=1), '{"x": 1, "y": 0}'),
        ([Row(1, float("inf"))], '[{"id": 1, "price": null}]'),
        ("é\ud800", "é\ufffd"),
        (b"raw", '"raw"'),
        (None, "null"),
        ([{"type": "text", "text": "a"}, {"type": "image", "base64": "AAAA"}], "a\n[image, not shown]"),
        (ToolMessage("from a message", tool_call_id="x"), "from a message"),
        ("x" * 1000, f"{'x' * 50}\n[cut: these are the first 50 of 1,000 characters]"),
    ],
)
async def test_result_is_text_whatever_it_is(result: Any, text: str) -> None:
    def give() -> Any:
        """Give the result."""
        return result

    assert await told(give, max_result_chars=50) == text


async def test_result_of_ten_megabytes_is_cut_to_the_limit() -> None:
    def dump() -> str:
        """Return a whole table."""
        return "x" * 10_000_000

    text = await told(dump)
    assert len(text) < 20_100
    assert text.endswith("[cut: these are the first 20,000 of 10,000,000 characters]")


class Strange(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("k"), "Error: fail failed: KeyError: 'k'"),
        (ToolException("try another city"), "Error: try another city"),
        (SystemExit(3), "Error: fail failed: SystemExit: 3"),
        (StopIteration(), "Error: fail failed: RuntimeError: coroutine raised StopIteration"),
        (TimeoutError("the database"), "Error: fail failed: TimeoutError: the database"),
        (Strange(), "Error: fail failed: Strange: <Strange>"),
        (asyncio.CancelledError(), "Error: fail failed: CancelledError: "),
    ],
)
@pytest.mark.parametrize("is_async", [False, True])
async def test_error_of_a_tool_is_told_to_the_policy(error: BaseException, text: str, is_async: bool) -> None:
    def fail() -> str:
        """Fail."""
        raise error

    async def afail() -> str:
        """Fail."""
        raise error

    afail.__name__ = "fail"
    assert await told(afail if is_async else fail) == text


@pytest.mark.parametrize("is_async", [False, True])
async def test_tool_that_hangs_is_left_behind(is_async: bool) -> None:
    ended = threading.Event()

    def hang() -> str:
        """Hang."""
        ended.wait(60)
        return "late"

    async def ahang() -> str:
        """Hang."""
        await asyncio.Event().wait()
        return "never"

    ahang.__name__ = "hang"
    assert (
        await told(ahang if is_async else hang, tool_timeout_s=0.2) == "Error: hang gave no result within 0.2 seconds"
    )
    ended.set()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"place": {"x": "one"}}', "place.x = 'one': Input should be a valid integer"),
        ("{}", "place: Field required"),
        ('{"place": {"x": 1}, "notes": "n"}', "unknown argument 'notes'; did you mean 'note'?"),
    ],
)
async def test_arguments_that_do_not_fit_are_told(arguments: str, text: str) -> None:
    assert f"Error: find was not run: its arguments do not fit: {text}" in await told(find, arguments)


async def test_call_of_no_tool_names_the_nearest() -> None:
    policy = answers(calling(("finds", {})), ANSWER)
    tree = await episode(policy, tools=[find, double])
    assert tree.spans[1].request[0]["content"] == "Error: there is no tool 'finds'; did you mean 'find'?"


def undocumented(a: int) -> int:
    return a


def starred(*values: int) -> int:
    """Take any number."""
    return sum(values)


def needs(environment: Any) -> str:
    """Need a world."""
    return str(environment)


def two_names(a: int) -> int:
    """Take a number."""
    return a


two_names.__name__ = "two names"


def hidden(_a: int) -> int:
    """Take a number of a name that no schema has."""
    return _a


def yields() -> Iterator[int]:
    """Yield a number."""
    yield 1


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ([undocumented], "no docstring"),
        ([starred], "no name of its own"),
        ([lambda a: a], "'<lambda>'"),
        ([needs], "pass environment="),
        ([two_names], "rename it"),
        ([hidden], "told of its parameter '_a'"),
        ([yields], "it yields"),
        ([find, find], "two tools have the name 'find'"),
        ([sys], "which is no tool"),
        ([Lookup], "pass an instance"),
        (["find"], "which is no tool"),
        (find, "pass a list"),
        ([{"type": "function"}], "which is no tool"),
    ],
)
def test_tools_that_cannot_be_used_are_refused(tools: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        build_graph(policy=ScriptedPolicy("x"), verifier=lambda task, answer: True, tools=tools)
