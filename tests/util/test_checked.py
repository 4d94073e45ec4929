"""Arguments of public functions are checked at the call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from r3agent import Sampling
from r3agent._util.checked import AtLeastOne, Positive, Word, checked
from r3agent.errors import ArgumentError


@checked
def call(
    name: Word,
    *,
    n: AtLeastOne = 1,
    timeout_s: Positive = 1.0,
    out: str | Path = "here",
    sampling: Sampling | None = None,
    messages: Annotated[Sequence[dict[str, Any]], Field(max_length=9)] = (),
    split: Literal["train", "test"] = "train",
    api_key: str | None = None,
) -> dict[str, Any]:
    """Take arguments of every kind."""
    return {"name": name, "n": n, "timeout_s": timeout_s, "out": out, "sampling": sampling}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n": 0}, "n = 0: Input should be greater than or equal to 1"),
        ({"n": True}, "n = True: Input should be a valid integer"),
        ({"n": "1"}, "n = '1': Input should be a valid integer"),
        ({"timeout_s": float("nan")}, "timeout_s = nan: Input should be a finite number"),
        ({"timeout_s": float("inf")}, "timeout_s = inf: Input should be a finite number"),
        ({"out": 5}, "out = 5: must be str or Path"),
        ({"sampling": {"top_p": 1}}, "sampling = {'top_p': 1}: must be a Sampling; write Sampling(**{'top_p': 1})"),
        ({"sampling": Sampling}, "Input should be an instance of Sampling"),
        ({"messages": "hi"}, 'write [{"role": "user", "content": "..."}]'),
        ({"messages": ["hi"]}, "messages.0 = 'hi': Input should be a valid dictionary"),
        ({"split": "tset"}, "split = 'tset': Input should be 'train' or 'test'"),
        ({"api_key": b"sk-secret"}, "api_key: a bytes; it must be a string"),
        ({"tmeout_s": 1}, "unknown argument 'tmeout_s'; did you mean 'timeout_s'?"),
    ],
)
async def test_checked_names_value_limit_and_remedy(given: dict[str, Any], says: str) -> None:
    @checked
    async def later(**given: Any) -> object:
        return call("a", **given)

    with pytest.raises(ArgumentError) as refused:
        call("a", **given)
    assert says in str(refused.value)
    assert "sk-secret" not in str(refused.value)
    with pytest.raises(ArgumentError):
        await later(**given)


def test_checked_passes_on_what_fits() -> None:
    sampling = Sampling(top_p=0.5)
    given = {"n": 2, "timeout_s": 3, "out": Path("there"), "sampling": sampling}
    assert call("a", **given) == {"name": "a", **given}
    assert call("a", **given)["sampling"] is sampling
    assert "timeout_s" in inspect.signature(call).parameters
    with pytest.raises(ArgumentError, match="name = '  '"):
        call("  ")
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        call()  # type: ignore[call-arg]
