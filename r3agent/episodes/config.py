"""Limits, prompts and sampling of the reflect-retry loop, declared and validated once.

`build_graph`, `collect`, a run's `r3.toml`, its evaluations and `EpisodeContext` all use these settings.
"""

from __future__ import annotations

from copy import copy
from typing import Any, Literal, Self, TypeAlias, cast

from pydantic import BaseModel, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema
from typing_extensions import TypedDict

from r3agent._util.messages import explain
from r3agent._util.templates import Template, compile_template
from r3agent.episodes.budget import Budget
from r3agent.errors import ConfigError
from r3agent.policy import Sampling
from r3agent.records.cost import Prices
from r3agent.records.prompts import BLIND_RETRY, HIDDEN, KNOWN, REFLECT, RETRY
from r3agent.records.trajectory import Record
from r3agent.verifiers.interface import CutOff

COLLECT_REFLECTIONS = 8
"""Default G of a collection, the size of a GRPO group; the graph and evaluations reflect once by default."""


class EpisodeOptions(TypedDict, total=False):
    """Keyword arguments of `build_graph` and `collect`; `EpisodeConfig` documents and validates them."""

    max_attempts: int
    reflections: int
    reflections_at_once: int | None
    retries: int
    blind_retries: int
    reflect_prompt: str
    retry_prompt: str
    blind_retry_prompt: str
    sampling: Sampling | None
    reflect_sampling: Sampling | None
    cut_off: CutOff
    verify_timeout_s: float | None
    max_steps: int
    try_timeout_s: float | None
    tool_timeout_s: float | None
    max_result_chars: int
    agent_errors: AgentErrors


AgentErrors: TypeAlias = Literal["raise", "record"]
"""Treatment of an agent that raises."""

AGENT_SETTINGS = ("max_steps", "try_timeout_s", "tool_timeout_s", "max_result_chars", "agent_errors")
"""Settings that only tries of an agent or with tools have."""

WITHOUT_EFFECT = ("verify_timeout_s",)
"""Settings on which no span of an episode depends."""


class AgentLimits(Record):
    """Limits of a try of an agent or with tools."""

    max_steps: int = Field(default=16, ge=1)
    """Maximum number of model calls in a try; a try that needs more fails."""
    try_timeout_s: float | None = Field(default=600.0, gt=0)
    """Time limit of a try, in seconds; a try that takes longer fails. `None` for none."""
    tool_timeout_s: float | None = Field(default=60.0, gt=0)
    """Time limit of one call of a tool of `tools`, in seconds; the policy is told of it. `None` for none."""
    max_result_chars: int = Field(default=20_000, ge=1)
    """Maximum number of characters of a tool's result; the policy sees the beginning of a longer one."""


class EpisodeLimits(Record):
    """Limits on the number of spans in an episode."""

    max_attempts: int = Field(default=2, ge=1)
    """Maximum number of tries on one path, including the first."""
    reflections: int = Field(default=1, ge=0)
    """G: reflections of each failed try, a GRPO group; 0 retries without reflecting."""
    reflections_at_once: int | None = Field(default=None, ge=1)
    """Draw this many reflections of a failed try at a time, up to `reflections`, and stop when their rewards, the
    shares of the retries after them that passed, differ: more teach little then. `None` draws all at once."""
    retries: int = Field(default=1, ge=1)
    """M: retries after each reflection; crediting `retry` needs at least 2."""
    blind_retries: int = Field(default=0, ge=0)
    """B: retries of each failed try without a reflection, as a control. The reward `lift` needs at least 1; crediting
    `blind_retry` needs at least 2."""

    @model_validator(mode="after")
    def _draws_in_parts(self) -> Self:
        if self.reflections_at_once is not None and self.reflections_at_once > self.reflections:
            raise ValueError(
                f"reflections_at_once = {self.reflections_at_once}: above reflections = {self.reflections}, which are "
                "drawn at once then; lower it, or raise reflections"
            )
        return self


class EpisodePrompts(Record):
    """Prompts of the loop, as Jinja templates; `r3agent.records.prompts` documents their variables."""

    reflect_prompt: str = REFLECT
    """Prompt for a reflection on a failed try: a Jinja template with the variables task.messages, task.tools, answer,
    thinking, feedback and attempt."""
    retry_prompt: str = RETRY
    """Prompt for a retry after a reflection: a template with the same variables, and reflection."""
    blind_retry_prompt: str = BLIND_RETRY
    """Prompt for a retry without a reflection: a template with the variables of reflect_prompt."""

    @field_validator("*")
    @classmethod
    def _is_template(cls, value: Any, info: ValidationInfo) -> Any:
        if (name := str(info.field_name)) in KNOWN:
            try:
                compile_template(value, known=KNOWN[name], hidden=HIDDEN)
            except ConfigError as error:
                raise ValueError(error) from error  # pydantic reports it together with the other errors
        return value


class EpisodeConfig(EpisodeLimits, AgentLimits, EpisodePrompts):
    """Settings of one graph."""

    sampling: Sampling | None = None
    """Sampling settings of attempts and retries; they replace the policy's settings, the default, as a whole.
    Reflections have them too, unless `reflect_sampling` is set, but without fields of `extra` that force the form of an
    answer: `response_format`, `tool_choice` and the like."""
    reflect_sampling: Sampling | None = None
    """Sampling settings of reflections, replaced as a whole; default: `sampling` without `response_format` and the
    like."""
    cut_off: CutOff = "fail"
    """Treatment of an answer that was cut off at max_tokens or by a content filter: it fails, or with `judge` the
    verifier judges the part that is there, for tasks whose answers have no end."""
    verify_timeout_s: float | None = Field(default=600.0, gt=0)
    """Time limit of one verdict, in seconds; a verifier that takes longer has failed, and the episode has an error.
    `None` for none."""
    agent_errors: AgentErrors = "raise"
    """Treatment of an agent that raises: `raise` lets the error through, to the application; `record` stores it with
    the try, which has no verdict then, and goes on with the others, as `collect` does."""

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
        """Check that failed tries are retried if `max_attempts` is above 1.

        Raises:
            ConfigError: neither reflections nor blind retries are enabled.
        """
        if self.max_attempts > 1 and not self.reflections and not self.blind_retries:
            raise ConfigError(
                "reflections = 0 and blind_retries = 0: nothing would retry, with max_attempts = "
                f"{self.max_attempts}; pass reflections=1, or blind_retries=1 to retry without reflecting"
            )
        return self

    @classmethod
    def of(cls, options: EpisodeOptions) -> EpisodeConfig:
        """Validate the keyword arguments of a caller.

        Raises:
            ConfigError: a limit is not an integer or out of range, or nothing would retry; a sampling is not a
                `Sampling`; or a prompt is not a template or uses an unknown variable.
        """
        try:
            return cls.model_validate(dict(options), strict=True)  # a float or text is a slip in Python, not in TOML
        except ValidationError as error:
            raise ConfigError(f"{explain(error, cls)}; change it, or leave it out for the default") from None

    def options(self) -> EpisodeOptions:
        """Return the settings as keyword arguments of `build_graph` and `collect`."""
        return cast(EpisodeOptions, dict(self))

    def override(self, context: EpisodeContext) -> EpisodeConfig:
        """Return the settings of one run: fields missing from its context are unchanged.

        Raises:
            ConfigError: the combination would not retry.
        """
        settings = {name: value for name, value in context if value is not None and name in type(self).model_fields}
        return self.model_copy(update=settings).check() if settings else self

    def templates(self) -> dict[str, Template]:
        """Compile the prompts; return them by the names of their settings."""
        return {
            name: compile_template(getattr(self, name), name=name, known=KNOWN[name], hidden=HIDDEN) for name in KNOWN
        }


def field_of(name: str, default: Any, *, note: str = "") -> Any:
    """Copy a field of `EpisodeConfig`, with its limits and docstring, and change its default.

    Args:
        note: text to append to the docstring.
    """
    field = copy(EpisodeConfig.model_fields[name])
    field.default = default
    field.description = f"{field.description}{note}"
    return field


class EpisodeContext(Budget):
    """Settings that one run overrides, and its budgets; other settings stay as the graph was built.

    Pass a dictionary, `graph.invoke(input, context={"max_attempts": 3})`, or an instance; LangGraph Studio shows a
    form. A larger graph passes its own context on to its subgraphs, so an embedded graph accepts only an instance.

    Raises:
        ConfigError: a setting is unknown or invalid.
    """

    max_attempts: int | None = field_of("max_attempts", None)
    reflections: int | None = field_of("reflections", None)
    reflections_at_once: int | None = field_of("reflections_at_once", None)
    retries: int | None = field_of("retries", None)
    blind_retries: int | None = field_of("blind_retries", None)
    sampling: Sampling | None = field_of("sampling", None)
    reflect_sampling: Sampling | None = field_of("reflect_sampling", None)
    max_steps: int | None = field_of("max_steps", None)
    try_timeout_s: float | None = field_of("try_timeout_s", None)
    model: str | None = Field(default=None, min_length=1)
    """Served name of the model to ask in place of the policy's, on the same server, such as `NAME@v0003` or
    `NAME@live`."""
    prices: Prices | None = None
    """Prices for `max_cost` in place of the policy's, e.g. those of `model`."""
    policy: SkipJsonSchema[Any] = None
    """Policy to ask in place of the graph's; an object, so that a form has no field for it."""
    begin: SkipJsonSchema[Any] = None
    """Failed try to begin with, in place of a first try: a `Trajectory` of `r3agent.records.branching.branch_of`."""
    sample: int | None = Field(default=None, ge=0)
    """Index of this episode among several of its task, 0 by default: with a seed, each is drawn differently."""

    def __init__(self, **settings: Any) -> None:
        # LangGraph calls this with a caller's JSON; the caller should get a one-line error.
        try:
            BaseModel.__init__(self, **settings)
        except ValidationError as error:
            raise ConfigError(
                f"{explain(error, EpisodeContext, root='context')}; change it, or leave it out for what the graph was "
                "built with"
            ) from None
