"""The requests that are understood, with the field names, defaults and limits of vLLM 0.32.

Unknown fields are ignored, as OpenAI's API does, except those that would change the result: they are refused by
name. Where vLLM takes defaults from the model's generation_config.json, the defaults here are neutral: temperature 1
and no truncation, so that what is sampled follows the logprobs that are reported. `n` completions at temperature 0,
which vLLM refuses, are n times the same.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from r3agent.serve.errors import APIError

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "bad_words": (None, []),
    "best_of": (None, 1),
    "chat_template": (None,),
    "documents": (None, []),
    "echo": (None, False),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none", "auto"),
    "functions": (None, []),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "include_stop_str_in_output": (None, False),
    "logit_bias": (None, {}),
    "logprob_token_ids": (None, []),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "presence_penalty": (None, 0),
    "prompt_logprobs": (None,),
    "prompt_embeds": (None,),
    "reasoning_effort": (None,),
    "repetition_penalty": (None, 1),
    "response_format": (None, {"type": "text"}),
    "return_tokens_as_token_ids": (None, False),
    "skip_special_tokens": (None, True),
    "stop_token_ids": (None, []),
    "structured_outputs": (None,),
    "suffix": (None, ""),
    "tool_choice": (None, "auto", "none"),
    "top_k": (None, 0, -1),
    "truncate_prompt_tokens": (None,),
    "use_beam_search": (None, False),
}
"""Fields that would change the result, with the values under which they do not."""

INT64 = 2**63

RequestBody = TypeVar("RequestBody", bound="BaseModel")


def _or(default: Any) -> BeforeValidator:
    """`null` means the same as leaving the field out."""
    return BeforeValidator(lambda value: default if value is None else value)


def _as_list(value: Any) -> Any:
    return [] if value is None else [value] if isinstance(value, str) else value


class StreamOptions(BaseModel):
    include_usage: Annotated[bool, _or(False)] = False


class SamplingFields(BaseModel):
    """What chat and text completions have in common."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    """A served name; without it, the base model."""
    n: Annotated[int, _or(1), Field(ge=1, le=1024)] = 1
    temperature: Annotated[float, _or(1.0), Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, _or(1.0), Field(gt=0, le=1)] = 1.0
    seed: Annotated[int | None, Field(ge=-INT64, lt=INT64)] = None
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(_as_list), Field(max_length=4)] = []
    stream: Annotated[bool, _or(False)] = False
    stream_options: StreamOptions | None = None
    ignore_eos: Annotated[bool, _or(False)] = False
    allowed_token_ids: list[Annotated[int, Field(ge=0)]] | None = None
    return_token_ids: Annotated[bool, _or(False)] = False


class ChatCompletionRequest(SamplingFields):
    """`tools` go to the chat template; there is no tool parser, so calls come back as text."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
    logprobs: Annotated[bool, _or(False)] = False
    top_logprobs: Annotated[int, _or(0), Field(ge=0, le=20)] = 0
    tools: Annotated[list[dict[str, Any]] | None, Field(min_length=1)] = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: Annotated[dict[str, Any], _or({})] = {}


class CompletionRequest(SamplingFields):
    """One prompt, as token ids or as text; not streamed."""

    prompt: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, _or(16), Field(ge=1)] = 16
    logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    prompt_logprobs: Annotated[int | None, Field(ge=0, le=20)] = None
    add_special_tokens: bool = True


class LoadAdapterRequest(BaseModel):
    lora_name: Annotated[str, Field(min_length=1)]
    lora_path: Annotated[str, Field(min_length=1)]
    load_inplace: bool = False


class UnloadAdapterRequest(BaseModel):
    lora_name: Annotated[str, Field(min_length=1)]


class ReloadArguments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    weights_path: str | None = None
    """Default: where the weights that are served came from."""


class CollectiveRPCRequest(BaseModel):
    method: str
    args: list[Any] = []
    kwargs: ReloadArguments = ReloadArguments()


class WeightVersionRequest(BaseModel):
    new_version: str


def parse(kind: type[RequestBody], body: bytes) -> RequestBody:
    """Read a request.

    Raises:
        APIError: it is not JSON, a field is missing or out of range, or one would have to be ignored at the cost of
            another result.
    """
    try:
        request = kind.model_validate(orjson.loads(body))
    except orjson.JSONDecodeError as error:
        raise APIError(f"the body is not JSON: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = str(first["loc"][0]) if first["loc"] else None
        where = ".".join(map(str, first["loc"])) or "the body"
        given = "" if first["type"] == "missing" else f" = {_shorten(first['input'])}"
        raise APIError(f"{where}{given}: {first['msg']}", param=param) from None
    for field, value in (request.model_extra or {}).items():
        if field in NEUTRAL and value not in NEUTRAL[field]:
            raise APIError(
                f"{field} = {_shorten(value)} is not supported and would change the result; leave it out, or serve "
                "the model with vLLM",
                param=field,
            )
    return request


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
