"""Check tokens, logprobs and their lengths in completions, for each mode that applications use."""

from __future__ import annotations

from typing import Any, TypeAlias

from r3agent._util.aio import gather_all
from r3agent.doctor.probe import MAX_TOKENS, MESSAGES, Completion, EndpointProbe, RouteReply
from r3agent.doctor.records import Check
from r3agent.errors import EndpointError, PolicyError
from r3agent.http.negotiation import Terms
from r3agent.policy.parse import read_logprobs
from r3agent.records.sampling import LIMITS, NEUTRAL

TOOL = {
    "type": "function",
    "function": {
        "name": "greet",
        "description": "Say hello.",
        "parameters": {"type": "object", "properties": {"name": {"type": "string"}}},
    },
}
SCHEMA = {"type": "object", "properties": {"hello": {"type": "boolean"}}, "required": ["hello"]}
TOOLS: dict[str, Any] = {"tools": [TOOL]}
FORMAT: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "greeting", "schema": SCHEMA}}
}

MODES: dict[str, dict[str, Any]] = {
    "exact tokens": {},
    "exact tokens, n = 2": {"n": 2},
    "exact tokens, streamed": {"stream": True},
    "exact tokens, tools": TOOLS,
    "exact tokens, tools streamed": TOOLS | {"stream": True, "tool_choice": "required"},
    "exact tokens, JSON schema": FORMAT,
    "exact tokens, JSON schema streamed": FORMAT | {"stream": True},
}
"""Additional request fields, by check; a forced call always passes the tool parser, which may drop tokens."""

PLAIN, N, STREAMED, TOOL_MODE, TOOL_STREAM, SCHEMA_MODE, _ = MODES
NEEDS = {
    "stream": ("streaming", STREAMED),
    "tools": ("tool calls", TOOL_MODE),
    "response_format": ("JSON schema", SCHEMA_MODE),
}
"""Check that a request field works at all, and the mode with only this field, by field."""

SETTINGS: dict[str, Any] = {**NEUTRAL, "temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["\n\n\n\n"]}
"""Sampling settings to try, with values that are not the defaults of servers."""

FEATURES = (
    "sampling settings",
    "chat template",
    "logprobs",
    "token ids",
    "n",
    "streaming",
    "tool calls",
    "JSON schema",
)

DECIDES = (
    "r3agent leaves them out, and records on each span that the server decided; set them at the server, if you can"
)
RETURN_TOKEN_IDS = "serve the model with a recent vLLM or with `r3agent serve`: they return the tokens they sampled"
RETURN_LOGPROBS = "allow logprobs at the server or the gateway before it; vLLM and `r3agent serve` return them"
LOST = (
    "tokens are lost on the way: update the server, or turn off its reasoning parser, its tool parser or what rewrites "
    "completions; until then such spans are recorded and not trained on"
)
TOOL_PARSER = (
    "serve a model whose chat template takes tools; vLLM needs --enable-auto-tool-choice and --tool-call-parser NAME"
)
EMPTY = f"a model that thinks first may need more than {MAX_TOKENS} tokens: collect a few tasks and look at their spans"
LOOK = "look at the server's log"
JSON_SCHEMA = "use vLLM, which follows response_format"
TEMPLATE = "find what changes the prompt between client and model: training would see other tokens than were sampled on"

ChatResult: TypeAlias = Completion | PolicyError


async def generation_checks(probe: EndpointProbe, model: str) -> tuple[list[Check], list[Completion]]:
    """Run the checks of completions; return them and the completions that decide the tier, plain and n = 2."""
    logprobs, ids = await gather_all([probe.chat(model, logprobs=True), probe.chat(model, return_token_ids=True)])
    single_fields = {"logprobs": logprobs, "return_token_ids": ids}
    accepted: dict[str, Any] = {
        field: True for field, result in single_fields.items() if isinstance(result, Completion)
    }
    completions = await gather_all(probe.chat(model, **accepted, **fields) for fields in MODES.values())
    results: dict[str, ChatResult] = dict(zip(MODES, completions, strict=True))
    if isinstance(results[TOOL_STREAM], PolicyError):  # not every server and tokenizer can force a call
        results[TOOL_STREAM] = await probe.chat(model, **accepted, **TOOLS, stream=True)
    rendered = await probe.call("/tokenize", {"model": model, "messages": MESSAGES}, of_server=True)
    features = [
        await _settings(probe, model),
        _template(results[PLAIN], rendered),
        _logprobs(logprobs),
        _token_ids(ids),
        _n(results[N]),
        _works("streaming", results[STREAMED], "use vLLM or `r3agent serve`, which stream"),
        _tool_calls(results[TOOL_MODE]),
        _json_schema(results[SCHEMA_MODE]),
    ]
    works = {check.name: check.status for check in features}
    has_all = works["logprobs"] == works["token ids"] == "yes"
    exact: list[Check] = []
    for name, completion in results.items():
        needed = [NEEDS[field] for field in MODES[name] if field in NEEDS]
        lacking = [feature for feature, alone in needed if isinstance(results[alone], PolicyError)]
        if lacking:
            exact.append(Check(name=name, status="skipped", detail=f"no {lacking[0]}"))
        else:
            exact.append(_exact(name, completion, has_all))
    return features + exact, [c for c in (results[PLAIN], results[N]) if isinstance(c, Completion)]


def failed(name: str, error: PolicyError, remedy: str | None = None) -> Check:
    """Make the check of a failed request: `no` for a refusal, `unknown` for no response or a server error."""
    if isinstance(error, EndpointError):
        return Check(name=name, status="unknown", detail=str(error), remedy=LOOK)
    return Check(name=name, status="no", detail=str(error), remedy=remedy)


async def _settings(probe: EndpointProbe, model: str) -> Check:
    """Check which sampling settings the endpoint takes; the others are left out of all requests."""
    terms = Terms("")
    result = await probe.chat(model, terms=terms, may_drop=SETTINGS, **SETTINGS)
    if isinstance(result, PolicyError):
        return failed("sampling settings", result)
    settings = {"max_tokens": MAX_TOKENS, **SETTINGS}
    refused = terms.lost(settings)
    notes = [f"refuses {', '.join(refused)}"] if refused else []
    notes += [f"takes only {name} = {value:g}" for name, value in terms.defaults.items()]
    notes += ["takes only one of temperature and top_p"] if terms.excludes_pair else []
    notes += [f"calls max_tokens {LIMITS[1]}"] if LIMITS[1] in terms.fit(settings) else []
    return Check(
        name="sampling settings",
        status="no" if refused or terms.defaults else "yes",
        detail="; ".join(notes),
        remedy=DECIDES if refused else None,
    )


def _works(name: str, result: ChatResult, remedy: str) -> Check:
    return failed(name, result, remedy) if isinstance(result, PolicyError) else Check(name=name, status="yes")


def _logprobs(result: ChatResult) -> Check:
    if isinstance(result, PolicyError):
        return failed("logprobs", result, RETURN_LOGPROBS)
    token_logprobs, wrong = read_logprobs(result.body["choices"][0].get("logprobs"))
    if wrong is not None:
        return Check(name="logprobs", status="no", detail=wrong, remedy=RETURN_LOGPROBS)
    if not token_logprobs:
        return Check(name="logprobs", status="no", detail="asked for and not returned", remedy=RETURN_LOGPROBS)
    return Check(name="logprobs", status="yes", detail=f"{len(token_logprobs)} of sampled tokens")


def _token_ids(result: ChatResult) -> Check:
    if isinstance(result, PolicyError):
        return failed("token ids", result, RETURN_TOKEN_IDS)
    prompt, sampled = result.generations[0].prompt_token_ids, result.generations[0].token_ids
    detail = f"{len(prompt or ())} of the prompt, {len(sampled or ())} sampled"
    if prompt and sampled:
        return Check(name="token ids", status="yes", detail=detail)
    return Check(name="token ids", status="no", detail=f"asked for, and got {detail}", remedy=RETURN_TOKEN_IDS)


def _n(result: ChatResult) -> Check:
    remedy = "r3agent asks again for each of the rest; vLLM and `r3agent serve` compute the prompt once for all"
    if isinstance(result, PolicyError):
        return failed("n", result, remedy)
    n_choices = len(result.body["choices"])
    detail = f"{n_choices} of 2 completions in one request"
    return Check(
        name="n", status="yes" if n_choices == 2 else "no", detail=detail, remedy=remedy if n_choices < 2 else None
    )


def _tool_calls(result: ChatResult) -> Check:
    if isinstance(result, PolicyError):
        return failed("tool calls", result, TOOL_PARSER)
    if result.generations[0].tool_calls:
        return Check(name="tool calls", status="yes")
    # With so few tokens, or a small model, the absence of a call proves nothing.
    return Check(name="tool calls", status="unknown", detail="tools are accepted; the model made no call")


def _json_schema(result: ChatResult) -> Check:
    if isinstance(result, PolicyError):
        return failed("JSON schema", result, JSON_SCHEMA)
    text = result.generations[0].text
    if text.lstrip()[:1] in ("{", ""):
        return Check(name="JSON schema", status="yes" if text.strip() else "unknown", detail=f"answered {text[:40]!r}")
    return Check(name="JSON schema", status="no", detail=f"ignored: answered {text[:40]!r}", remedy=JSON_SCHEMA)


def _exact(name: str, result: ChatResult, has_all: bool) -> Check:
    """Check the capability that is recorded on spans, with the numbers behind it.

    Args:
        has_all: the endpoint returns token ids and logprobs, so anything missing in this mode was lost.
    """
    if isinstance(result, PolicyError):
        return failed(name, result)
    if result.is_empty:
        return Check(name=name, status="unknown", detail=f"nothing came ({result.lengths})", remedy=EMPTY)
    worst = result.worst
    if worst.capability == "trainable-exact":
        return Check(name=name, status="unknown" if result.usage_tokens is None else "yes", detail=result.lengths)
    detail = f"{worst.capability}: {worst.capability_note} ({result.lengths})"
    remedy = LOST if has_all or worst.capability == "eval-only" else None
    return Check(name=name, status="no", detail=detail, remedy=remedy)


def _template(result: ChatResult, rendered: RouteReply) -> Check:
    """Check that the prompt's tokens are available, and that all sources agree."""
    name = "chat template"
    if isinstance(result, PolicyError):
        return failed(name, result)
    ids = result.generations[0].prompt_token_ids
    by_tokenize = rendered.body.get("tokens") if isinstance(rendered.body, dict) else None
    by_tokenize = by_tokenize if isinstance(by_tokenize, list) else None
    lengths = {
        "in prompt_token_ids": None if ids is None else len(ids),
        "by /tokenize": None if by_tokenize is None else len(by_tokenize),
        "in usage": result.generations[0].prompt_tokens,
    }
    known = {source: length for source, length in lengths.items() if length is not None}
    detail = "prompt tokens: " + (", ".join(f"{length} {source}" for source, length in known.items()) or "none known")
    if ids is None and by_tokenize is None:
        return Check(name=name, status="unknown", detail=f"the rendered prompt is not shown; {detail}")
    if len(set(known.values())) > 1 or (ids and by_tokenize and [*ids] != by_tokenize):
        return Check(name=name, status="no", detail=detail, remedy=TEMPLATE)
    return Check(name=name, status="yes", detail=detail)
