"""Limits, prompts and sampling of the reflect-retry loop, declared and checked once.

`build_graph`, `collect`, a run's `r3.toml`, its evaluations and `EpisodeContext` all take their settings from here.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Self, cast

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from typing_extensions import TypedDict

from r3agent._util.messages import explain
from r3agent._util.templates import Template, compile_template
from r3agent.errors import ConfigError
from r3agent.policy import Sampling
from r3agent.records.prompts import BLIND_RETRY, HIDDEN, KNOWN, REFLECT, RETRY
from r3agent.records.trajectory import Record

COLLECT_REFLECTIONS = 8
"""G of a collection, by default: the size of a GRPO group. Graph and evaluation reflect once."""


class EpisodeOptions(TypedDict, total=False):
    """Keyword arguments of `build_graph` and `collect`; `EpisodeConfig` documents and checks them."""

    max_attempts: int
    reflections: int
    retries: int
    blind_retries: int
    reflect_prompt: str
    retry_prompt: str
    blind_retry_prompt: str
    sampling: Sampling | None
    reflect_sampling: Sampling | None


class EpisodeLimits(Record):
    """Limits on the spans that an episode may grow."""

    max_attempts: int = Field(default=2, ge=1, strict=True)
    """Tries on one path, the first included."""
    reflections: int = Field(default=1, ge=0, strict=True)
    """G: reflections of each failed try, a GRPO group; 0 retries without reflecting."""
    retries: int = Field(default=1, ge=1, strict=True)
    """M: retries after each reflection; crediting `retry` needs at least 2."""
    blind_retries: int = Field(default=0, ge=0, strict=True)
    """B: retries of each failed try without a reflection, as a control; the reward `lift` needs at least 1, crediting
    them at least 2."""


class EpisodePrompts(Record):
    """Requests of the loop, as Jinja templates; `r3agent.records.prompts` has what they may name."""

    reflect_prompt: str = REFLECT
    """Asks for a reflection, after a failed try. A Jinja template, which may name task.messages, task.tools, answer,
    thinking, feedback and attempt."""
    retry_prompt: str = RETRY
    """Asks for another try, after a reflection; likewise, and it may name the reflection too."""
    blind_retry_prompt: str = BLIND_RETRY
    """Asks for another try without a reflection; likewise."""

    @field_validator("*")
    @classmethod
    def _is_template(cls, value: Any, info: ValidationInfo) -> Any:
        if (name := str(info.field_name)) in KNOWN:
            try:
                compile_template(value, known=KNOWN[name], hidden=HIDDEN)
            except ConfigError as error:
                raise ValueError(error) from error  # so that it is reported with the other errors
        return value


class EpisodeConfig(EpisodeLimits, EpisodePrompts):
    """Settings of one graph."""

    sampling: Sampling | None = None
    """Sampling of attempts and retries, as a whole; of reflections too, unless they have their own. Default: the
    policy's."""
    reflect_sampling: Sampling | None = None
    """Sampling of reflections, as a whole."""

    @field_validator("sampling", "reflect_sampling", mode="before")
    @classmethod
    def _is_sampling(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, Sampling | None):
            raise ConfigError(f"{info.field_name} = {value!r}: must be a Sampling, such as Sampling(temperature=0.7)")
        return value

    @model_validator(mode="after")
    def _can_retry(self) -> Self:
        return self.check()

    def check(self) -> Self:
        """Check that something retries.

        Raises:
            ConfigError: nothing would, with more than one try.
        """
        if self.max_attempts > 1 and not self.reflections and not self.blind_retries:
            raise ConfigError(
                "reflections = 0 and blind_retries = 0: nothing would retry, with max_attempts = "
                f"{self.max_attempts}; pass reflections=1, or blind_retries=1 to retry without reflecting"
            )
        return self

    @classmethod
    def of(cls, options: EpisodeOptions) -> EpisodeConfig:
        """Check the keyword arguments of a caller.

        Raises:
            ConfigError: a limit is no whole number or out of range, or none would retry; a sampling is no `Sampling`;
                or a prompt is no template or names what it is not given.
        """
        try:
            return cls.model_validate(dict(options))
        except ValidationError as error:
            raise ConfigError(f"{explain(error, cls)}; change it, or leave it out for the default") from None

    def options(self) -> EpisodeOptions:
        """Return the settings as keyword arguments of `build_graph` and `collect`."""
        return cast(EpisodeOptions, dict(self))

    def override(self, context: EpisodeContext) -> EpisodeConfig:
        """Return the settings of one run: what its context leaves out stays.

        Raises:
            ConfigError: the combination would not retry.
        """
        settings = {name: value for name, value in context if value is not None}
        return self.model_copy(update=settings).check() if settings else self

    def templates(self) -> dict[str, Template]:
        """Compile the prompts, by the names of their settings."""
        return {
            name: compile_template(getattr(self, name), name=name, known=KNOWN[name], hidden=HIDDEN) for name in KNOWN
        }


def field_of(name: str, default: Any, *, note: str = "") -> Any:
    """Declare a field as `EpisodeConfig` does, limits and docstring included, with another default.

    Args:
        note: what to add to the docstring.
    """
    field = copy(EpisodeConfig.model_fields[name])
    field.default = default
    field.description = f"{field.description}{note}"
    return field


class EpisodeContext(Record):
    """Settings that one run overrides; what is left out stays as it was built.

    `graph.invoke(input, context={"max_attempts": 3})`, an instance does as well; in LangGraph Studio it is a form. A
    larger graph passes its own context on to the graphs in it, so in one that is embedded only an instance counts.

    Raises:
        ConfigError: a setting is unknown or does not fit.
    """

    max_attempts: int | None = field_of("max_attempts", None)
    reflections: int | None = field_of("reflections", None)
    retries: int | None = field_of("retries", None)
    blind_retries: int | None = field_of("blind_retries", None)
    sampling: Sampling | None = field_of("sampling", None)
    reflect_sampling: Sampling | None = field_of("reflect_sampling", None)

    def __init__(self, **settings: Any) -> None:
        # LangGraph makes it of a caller's JSON, and a caller should read one line of what to change.
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(
                f"{explain(error, EpisodeContext, root='context')}; change it, or leave it out for what the graph was "
                "built with"
            ) from None
