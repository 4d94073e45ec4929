"""Judge a reply by its function calls: exactly the expected ones, in any order.

`task.info` is an `Expectation`; if it is malformed, the task is at fault, not the model. Calls are the reply's
`tool_calls`, else those written in its text (see `calls.py`); if the task offers `tools`, only as chat templates write
them, for servers that do not parse them. The rules for arguments are in `arguments.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.optimize import linear_sum_assignment

from r3agent.records.trajectory import Record, Task, Verdict
from r3agent.verifiers.function_call.arguments import ParameterType, fault, render
from r3agent.verifiers.function_call.calls import (
    FunctionCall,
    Unreadable,
    is_attempt,
    native_calls,
    template_calls,
    text_calls,
    typed,
    without_thinking,
)


class Signature(Record):
    """Declaration of a function."""

    required: tuple[str, ...] = ()
    types: dict[str, Annotated[tuple[ParameterType, ...], Field(max_length=2)]] = {}
    """Type of each parameter, and optionally the type of an array's or tuple's items. Empty if the parameter is
    undeclared and must be left out."""


class ExpectedCall(Record):
    """Expected function call."""

    name: str
    accepts: dict[str, tuple[Any, ...]] = {}
    """Accepted values of each parameter; `""` among them makes it optional."""


class Expectation(BaseModel):
    """Expectation of a task, read from `task.info`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    expect: Literal["calls", "some_call", "no_call"]
    """Exactly `calls`; any call of one of `functions`; or no call, in words or as an empty list. An empty reply is not
    accepted as no call, because it may be unfinished thinking."""
    calls: tuple[ExpectedCall, ...] = ()
    functions: dict[str, Signature]

    @model_validator(mode="after")
    def _complete(self) -> Expectation:
        if bool(self.calls) != (self.expect == "calls"):
            raise ValueError(f"expect = {self.expect!r} with {len(self.calls)} calls")
        for call in self.calls:
            if call.name not in self.functions:
                raise ValueError(f"call of {call.name!r}, which functions lacks")
            if unknown := call.accepts.keys() - self.functions[call.name].types:
                raise ValueError(f"{call.name!r} accepts {sorted(unknown)}, whose types its signature lacks")
        return self


def function_call(task: Task, answer: str) -> Verdict:
    """Judge the calls in `answer`; plain text is a reply without `tool_calls`.

    Raises:
        ValueError: `task.info` is not an `Expectation`.
    """
    expectation = Expectation.model_validate(task.info)
    tool_calls: Sequence[Any] = getattr(answer, "tool_calls", ())
    if expectation.expect == "no_call" and not tool_calls and not without_thinking(answer):
        return _verdict("an empty reply")
    read = template_calls if task.tools else text_calls
    try:
        calls = native_calls(tool_calls) if tool_calls else read(answer)
    except Unreadable as error:
        # A malformed call is still a call; prose without one is right if no function fits.
        if expectation.expect == "no_call" and not tool_calls and not is_attempt(answer):
            return _verdict(None)
        return Verdict.failed(str(error), readable=False)
    return _verdict(_wrong(expectation, calls))


def _wrong(expectation: Expectation, calls: list[FunctionCall]) -> str | None:
    match expectation.expect:
        case "no_call":
            return f"{len(calls)} calls, where no function fits" if calls else None
        case "some_call":
            if not calls:
                return "no call, where a function fits"
            return next((f"no function {render(c.name)}" for c in calls if c.name not in expectation.functions), None)
        case "calls":
            return _mismatch(expectation, calls)


def _mismatch(expectation: Expectation, calls: list[FunctionCall]) -> str | None:
    """Return the difference of the calls from the expected ones in any order, or `None`."""
    if len(calls) != len(expectation.calls):
        return f"{len(calls)} calls, not {len(expectation.calls)}"
    faults = [[_fault(expectation, expected, call) for call in calls] for expected in expectation.calls]
    if len(calls) == 1:
        return faults[0][0]
    # One call can match several expected ones, so solve an assignment instead of taking the first match.
    rows, columns = linear_sum_assignment([[wrong is not None for wrong in row] for row in faults])
    return next((wrong for i, j in zip(rows, columns, strict=True) if (wrong := faults[i][j]) is not None), None)


def _fault(expectation: Expectation, expected: ExpectedCall, call: FunctionCall) -> str | None:
    if call.name != expected.name:
        return f"calls {render(call.name)}, not {expected.name}"
    signature = expectation.functions[expected.name]
    arguments = {name: typed(value, *signature.types.get(name, ())[:1]) for name, value in call.arguments.items()}
    return fault(arguments, required=signature.required, accepts=expected.accepts, types=signature.types)


def _verdict(wrong: str | None) -> Verdict:
    return Verdict(passed=wrong is None, score=float(wrong is None), feedback=wrong)
