"""Mistakes that users make: each is answered at the call that makes it, by one line with the value and a remedy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel

from r3agent import ConfigError, OpenAIPolicy, Sampling, Span, Task, Trajectory
from r3agent.train import TrainConfig

URL = "http://127.0.0.1:9/v1"
MESSAGES = ({"role": "user", "content": "What is 6 times 7?"},)


class Person(BaseModel):
    name: str


@dataclasses.dataclass
class Turn:
    role: str
    content: str


@tool
def search(query: str) -> str:
    """Search the web."""
    return query


def refused(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    message = str(error.value)
    assert says in message
    assert "\n" not in message
    assert "errors.pydantic.dev" not in message


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("base_url", [None, 5, "", "127.0.0.1:8000"]),
        ("model", ["", " ", None, 5, b"m"]),
        ("concurrency", [0, -1, 1.5, "8", True, None, math.nan]),
        ("timeout_s", [0, -1, math.nan, math.inf, "5", True, None]),
        ("outage_s", [-1, math.nan, "5", None]),
        ("max_tries", [0, 1.5, "3", True, None]),
        ("api_key", [5, b"sk-secret"]),
        ("sampling", [{"temperature": 1}, 0.5, Sampling, "greedy"]),
        ("registry", [5]),
        ("concurency", [8]),
    ],
)
def test_openai_policy_refuses_a_setting_when_it_is_made(setting: str, values: list[Any]) -> None:
    for value in values:
        refused(lambda value=value: OpenAIPolicy(**{"base_url": URL, "model": "m", setting: value}), setting)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Sampling(temprature=1), "unknown key 'Sampling.temprature'; did you mean 'Sampling.temperature'?"),
        (lambda: Sampling(temperature=math.inf), "Sampling.temperature = inf: Input should be a finite number"),
        (lambda: Sampling(stop="END"), "Sampling.stop = 'END': Input should be a valid list; write ['END']"),
        (
            lambda: Sampling(extra={"response_format": Person}),
            '"schema": Person.model_json_schema()}',
        ),
        (lambda: Sampling(extra={"min_p": math.nan}), "min_p = nan is not JSON"),
        (lambda: Task(mesages=MESSAGES), "did you mean 'Task.messages'?"),
        (lambda: Trajectory(tsak={}), "did you mean 'Trajectory.task'?"),
        (lambda: Span(lable="attempt", text="", model="m"), "did you mean 'Span.label'?"),
        (lambda: TrainConfig(learning_rat=1), "did you mean 'TrainConfig.learning_rate'?"),
        (lambda: TrainConfig(credit={"reflct": "lift"}), "unknown label 'reflct'; did you mean 'reflect'?"),
    ],
)
def test_record_names_the_nearest_key(make: Callable[[], object], says: str) -> None:
    refused(make, says)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": "hi"}, 'write [{"role": "user", "content": "..."}]'),
        ({"messages": MESSAGES[0]}, 'write [{"role": "user", "content": "..."}]'),
        ({"messages": [("user", "hi")]}, 'write {"role": "user", "content": "..."}'),
        ({"messages": [HumanMessage("hi")]}, "langchain_core.messages.convert_to_openai_messages"),
        ({"messages": [ChatCompletionMessage(role="assistant", content="hi")]}, "model_dump(exclude_none=True)"),
        ({"messages": [Turn("user", "hi")]}, "dataclasses.asdict"),
        ({"messages": MESSAGES, "tools": [search]}, "langchain_core.utils.function_calling.convert_to_openai_tool"),
        ({"messages": MESSAGES, "tools": [len]}, "langchain_core.utils.function_calling.convert_to_openai_tool"),
        ({"messages": MESSAGES, "gold": "42"}, 'write {"role": "user", "content": "..."}'),
    ],
)
def test_task_names_the_converter_of_what_it_gets(fields: dict[str, Any], says: str) -> None:
    refused(lambda: Task(**fields), says)
    refused(lambda: Task.of(fields), says)
