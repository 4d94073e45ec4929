"""Request bodies with the field names, defaults and limits of vLLM 0.32.

Unknown fields are ignored, as in OpenAI's API, except those that would change the result, which are refused by name. A
field that resembles a known one may be misspelt, and is logged.
vLLM takes some defaults from the model's generation_config.json; here they are neutral, temperature 1 and no
truncation, so that samples follow the reported logprobs. `n` completions at temperature 0, which vLLM refuses, are
identical.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from r3agent._util.messages import explain, nearest, shorten
from r3agent.records.sampling import GRAMMARS, UNCHANGED
from r3agent.serve.errors import APIError

IMPLEMENTED = ("temperature", "top_p", "allowed_token_ids")

NEUTRAL: dict[str, tuple[Any, ...]] = {
    **{field: values for field, values in UNCHANGED.items() if field not in IMPLEMENTED},
    **dict.fromkeys((*GRAMMARS, "chat_template", "prompt_embeds", "prompt_logprobs"), ()),
    **dict.fromkeys(("reasoning_effort", "truncate_prompt_tokens"), ()),
    **dict.fromkeys(("echo", "include_stop_str_in_output", "return_tokens_as_token_ids"), (False,)),
    **dict.fromkeys(("documents", "functions", "logprob_token_ids", "stop_token_ids"), ([],)),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "skip_special_tokens": (True,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
}
"""Fields that would change the result, with the values (besides `null`) that leave it unchanged."""

logger = logging.getLogger(__name__)

INT64 = 2**63

BodyT = TypeVar("BodyT", bound="Body")


class Body(BaseModel):
    """Request body, in which `null` is the same as omitting an optional field."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        required = {name for name, field in cls.model_fields.items() if field.is_required()}
        fields = cast(dict[str, Any], data)
        return {name: value for name, value in fields.items() if value is not None or name in required}


class StreamOptions(Body):
    include_usage: bool = False


class SamplingFields(Body):
    """Fields common to chat and text completions."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    """Served name; default the base model."""
    n: int = Field(default=1, ge=1, le=1024)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-INT64, lt=INT64)
    stop: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
        Field(max_length=4),
    ] = []
    stream: bool = False
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False
    allowed_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    return_token_ids: bool = False


class ChatCompletionRequest(SamplingFields):
    """Chat completion. `tools` go to the chat template; see `tool_calls.py` for the calls in a reply."""

    messages: list[dict[str, Any]] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    tools: list[dict[str, Any]] | None = Field(default=None, min_length=1)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = {}

    @property
    def offers_tools(self) -> bool:
        return self.tools is not None and (self.model_extra or {}).get("tool_choice") != "none"


class CompletionRequest(SamplingFields):
    """Text completion of one prompt, given as token ids or as text; not streamed."""

    prompt: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Annotated[str, Field(min_length=1)]
    max_tokens: int = Field(default=16, ge=1)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=20)
    add_special_tokens: bool = True


class LoadAdapterRequest(Body):
    lora_name: str = Field(min_length=1)
    lora_path: str = Field(min_length=1)
    load_inplace: bool = False


class UnloadAdapterRequest(Body):
    lora_name: str = Field(min_length=1)


class ReloadArguments(Body):
    model_config = ConfigDict(extra="forbid")

    weights_path: str | None = None
    """Directory of the weights; default that of the served weights."""


class CollectiveRPCRequest(Body):
    method: str
    args: list[Any] = []
    kwargs: ReloadArguments = ReloadArguments()


class WeightVersionRequest(Body):
    new_version: str


def parse(kind: type[BodyT], body: bytes) -> BodyT:
    """Parse a request.

    Raises:
        APIError: the body is not JSON, a field is missing or out of range, or an unsupported field would change the
            result.
    """
    try:
        request = kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise APIError(f"the body is not JSON: {error}") from None
    except ValidationError as error:
        path = error.errors(include_url=False)[0]["loc"]
        raise APIError(explain(error, kind), param=str(path[0]) if path else None) from None
    for field, value in (request.model_extra or {}).items():
        if field in NEUTRAL and value not in NEUTRAL[field]:
            raise APIError(
                f"{field} = {shorten(value)} is not supported and would change the result; leave it out, or serve "
                "the model with vLLM",
                param=field,
            )
        if field not in NEUTRAL:
            _warn_of_unknown(field, kind)
    return request


@lru_cache(maxsize=256)
def _warn_of_unknown(field: str, kind: type[Body]) -> None:
    """Log an unknown field that resembles a known one, once."""
    if hint := nearest(field, [*kind.model_fields, *NEUTRAL]):
        logger.warning("request field %r is unknown, and ignored; %s", field[:80], hint.strip())
