"""Messages: the nearest known name, and pydantic's errors on one line."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from r3agent._util.messages import MAX_ERRORS, MAX_VALUE_CHARS, did_you_mean, explain, shorten


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weight: float = Field(default=1.0, ge=0)


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner | None = None
    many: tuple[Inner, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_lower(cls, name: str) -> str:
        if not name.islower():
            raise ValueError(f"{name} must be lower case")
        return name


def test_did_you_mean_names_the_nearest_or_all() -> None:
    assert did_you_mean("retrys", ["retry", "attempt"]) == "did you mean 'retry'?"
    assert did_you_mean("epocs", ["epochs"], prefix="train.") == "did you mean 'train.epochs'?"
    assert did_you_mean("zzz", ["retry", "attempt"]) == "known are retry, attempt"


def test_shorten_cuts_only_what_is_long() -> None:
    assert shorten(["a"]) == "['a']"
    assert len(shorten("a" * 1000)) == MAX_VALUE_CHARS + len("...")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "name: Field required"),
        ({"name": 3}, "name = 3: Input should be a valid string"),
        ({"name": "A"}, "name: A must be lower case"),
        ({"name": "a", "nam": 1}, "unknown key 'nam'; did you mean 'name'?"),
        ({"name": "a", "inner": {"wait": 1}}, "unknown key 'inner.wait'; did you mean 'inner.weight'?"),
        ({"name": "a", "many": [{"zzz": 1}]}, "unknown key 'many.0.zzz'; known are weight"),
        ({"name": "a", "inner": {"weight": -1}}, "inner.weight = -1: Input should be greater than or equal to 0"),
        (3, "3: Input should be a valid dictionary or instance of Outer"),
    ],
)
def test_explain_names_key_value_and_limit(data: Any, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(data)
    assert explain(error.value, Outer) == message


def test_explain_puts_the_root_before_every_key() -> None:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate({"inner": {"wait": 1}})
    assert explain(error.value, Outer, root="app") == (
        "app.name: Field required; unknown key 'app.inner.wait'; did you mean 'app.inner.weight'?"
    )


def test_explain_counts_the_errors_it_leaves_out() -> None:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate({"name": "a", "many": [{"weight": -1}] * (MAX_ERRORS + 2)})
    assert explain(error.value, Outer).endswith("; and 2 more errors")


def test_explain_renders_another_error_as_it_is() -> None:
    assert explain(TypeError("no number"), Outer) == "no number"
