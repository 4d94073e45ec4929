"""The doctor tells the truth about endpoints of every kind, and leaves them as they were."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from r3agent.cli.main import main
from r3agent.doctor import Check, Diagnosis, diagnose, report
from r3agent.errors import ConfigError
from r3agent.serve import ServerProcess
from r3agent.testing import DROPPED, HANG, SERVER_ERROR, Fault, ScriptedEndpoint, miscount
from r3agent.testing.http import JsonServer, Respond
from tests.doctor.sampling import SamplingServer

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
DEV = ("/collective_rpc", "/update_weight_version", "/pause", "/resume", "/reset_prefix_cache")
ROUTES = ("LoRA load", "weight version", "weight reload", "pause and resume", "prefix-cache reset")


@contextmanager
def serving(respond: Respond) -> Iterator[str]:
    """The address of a server that answers with what `respond` returns."""
    with JsonServer(respond) as server:
        yield server.url


def said(body: Any, status: int = 200) -> Fault:
    return Fault(status, json.dumps(body))


def statuses(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.name: check.status for check in diagnosis.checks}


def details(diagnosis: Diagnosis) -> dict[str, str]:
    return {check.name: check.detail for check in diagnosis.checks}


def one_of_pair(body: dict[str, Any]) -> Fault | None:
    both = "`temperature` and `top_p` cannot both be specified for this model"
    return said({"error": {"message": both}}, 400) if {"temperature", "top_p"} <= body.keys() else None


def only_default(body: dict[str, Any]) -> Fault | None:
    message = "'temperature' does not support 0.7 with this model. Only the default (1) value is supported."
    return said({"error": {"message": message}}, 400) if body.get("temperature", 1) != 1 else None


class FakeVLLM:
    """Answers in the shapes of vLLM 0.32; `asked` has method and path of every request."""

    def __init__(
        self, *, all_flags: bool, edit: Callable[[dict[str, Any], dict[str, Any]], None] | None = None
    ) -> None:
        self.all_flags = all_flags
        self.edit = edit
        self.is_paused = False
        self.sampler = SamplingServer()
        self.asked: list[tuple[str, str]] = []

    def __call__(self, path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        self.asked.append(("GET" if body is None else "POST", path))
        missing = said({"detail": "Not Found"}, 404)
        match path:
            case "/v1/models":
                return said({"data": [{"id": "m", "owned_by": "vllm"}, {"id": "m@v0001"}]})
            case "/version":
                return said({"version": "0.32.0"})
            case "/tokenize":
                return said({"count": 3, "tokens": [1, 2, 3], "max_model_len": 64})
            case "/v1/chat/completions" if body:
                return self.chat(body)
            case "/v1/load_lora_adapter" if body and self.all_flags:
                where = f"No adapter found for {body['lora_path']}"
                return said({"error": {"message": f"Loading lora {body['lora_name']} failed: {where}"}}, 404)
            case "/weight_info" if self.all_flags:
                return said({"weight_version": "v0007"})
            case "/is_paused" if self.all_flags:
                return said({"is_paused": self.is_paused})
            case _ if path in DEV and self.all_flags:
                return said({"detail": "Method Not Allowed"}, 405)
            case _:
                return missing

    def chat(self, body: dict[str, Any]) -> Fault:
        if "top_logprobs" in body:
            return said(self.sampler.complete(body))
        if "tools" in body and not self.all_flags:
            message = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
            return said({"error": {"message": message}}, 400)
        n, text = body.get("n", 1), '{"hello": true}' if "response_format" in body else "hello"
        call = {"index": 0, "id": "1", "type": "function", "function": {"name": "greet", "arguments": "{}"}}
        message = {"content": None, "tool_calls": [call]} if "tools" in body else {"content": text}
        choices = [
            {
                "index": i,
                "message": message,
                "finish_reason": "stop",
                "token_ids": [7, 8] if "return_token_ids" in body else None,
                "logprobs": {"content": [{"logprob": -0.5}] * 2} if "logprobs" in body else None,
            }
            for i in range(n)
        ]
        answer = {"model": "m", "choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 2 * n}}
        if "return_token_ids" in body:
            answer["prompt_token_ids"] = [1, 2, 3]
        if self.edit:
            self.edit(body, answer)
        if not body.get("stream"):
            return said(answer)
        usage = {**answer, "choices": []}
        chunks = [{**answer, "usage": None, "choices": [{**c, "delta": c["message"]}]} for c in choices]
        events = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in [*chunks, usage])
        return Fault(body=f"{events}data: [DONE]\n\n", content_type="text/event-stream")


async def test_vllm_with_all_flags() -> None:
    vllm = FakeVLLM(all_flags=True)
    with serving(vllm) as url:
        diagnosis = await diagnose(url)
    assert (diagnosis.tier, diagnosis.model, diagnosis.base_url) == ("trainable-exact", "m", f"{url}/v1")
    assert set(statuses(diagnosis).values()) == {"yes"}
    assert details(diagnosis)["version"] == "vllm 0.32.0"
    assert details(diagnosis)["exact tokens, n = 2"] == "4 token ids, 4 logprobs, usage says 4"
    assert diagnosis.next_steps == ()


async def test_vllm_without_flags_says_which() -> None:
    with serving(FakeVLLM(all_flags=False)) as url:
        diagnosis = await diagnose(f"{url}/v1")
    found = statuses(diagnosis)
    assert diagnosis.tier == "trainable-exact"
    assert [found[name] for name in ROUTES] == ["no"] * 5
    assert (found["tool calls"], found["exact tokens, tools streamed"]) == ("no", "skipped")
    assert (found["JSON schema"], found["exact tokens, JSON schema streamed"]) == ("yes", "yes")
    text = report(diagnosis)
    for remedy in ("--enable-lora", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_SERVER_DEV_MODE", "--tool-call-parser"):
        assert remedy in text


async def test_nothing_is_called_that_changes_the_server() -> None:
    vllm = FakeVLLM(all_flags=True)
    with serving(vllm) as url:
        await diagnose(url)
    assert {path for method, path in vllm.asked if method == "POST"} == {CHAT, "/tokenize", "/v1/load_lora_adapter"}
    assert len(vllm.asked) <= 31


async def test_a_mode_that_loses_ids_is_named_with_the_numbers() -> None:
    def lose(body: dict[str, Any], answer: dict[str, Any]) -> None:
        """Drop a token, as vLLM's streaming tool parsers did."""
        if "tools" in body and body.get("stream") and "return_token_ids" in body:
            answer["choices"][0]["token_ids"].pop()
            answer["choices"][0]["logprobs"]["content"].pop()

    with serving(FakeVLLM(all_flags=True, edit=lose)) as url:
        diagnosis = await diagnose(url)
    lost = next(check for check in diagnosis.checks if check.name == "exact tokens, tools streamed")
    assert lost.status == "no"
    assert "1 token ids, 1 logprobs, usage says 2" in lost.detail
    assert "tokens are lost" in (lost.remedy or "")
    assert [check.name for check in diagnosis.checks if check.status != "yes"] == [lost.name]
    assert diagnosis.tier == "trainable-exact"
    assert "not in every mode: no exact tokens, tools streamed" in report(diagnosis)
    cut = Check(name="n", status="no", detail=f"refused: {'why ' * 99}; serve it with --this")
    text = report(diagnosis.model_copy(update={"checks": (cut,)}))
    assert re.search(r"refused: why .* \.\.\. .*why ; serve it with --this", text)


async def test_a_server_that_ignores_stream_is_named() -> None:
    with serving(FakeVLLM(all_flags=True, edit=lambda body, answer: body.pop("stream", None))) as url:
        diagnosis = await diagnose(url)
    detail = "no stream came: the server ignores `stream`, or does not send events"
    assert details(diagnosis)["streaming"] == detail


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"error": {"message": "slow sk-q"}}, "502 inside a 200: slow [the API key]"),
        (
            {"a": "sk-q"},
            """answered '{"a": "[the API key]"}', which is not a chat completion """
            "(ForeignAnswerError: it has no choices)",
        ),
    ],
)
async def test_a_success_that_is_no_completion_is_reported(answer: dict[str, Any], message: str) -> None:
    with serving(lambda path, *_: FakeVLLM(all_flags=True)(path, None, None) if path != CHAT else said(answer)) as url:
        diagnosis = await diagnose(url, api_key="sk-q ")
    assert details(diagnosis)["chat"] == message


async def test_a_mode_without_any_ids_is_a_loss_too() -> None:
    def lose(body: dict[str, Any], answer: dict[str, Any]) -> None:
        if "response_format" in body:
            answer["choices"][0]["token_ids"] = None

    with serving(FakeVLLM(all_flags=True, edit=lose)) as url:
        diagnosis = await diagnose(url)
    lost = next(check for check in diagnosis.checks if check.name == "exact tokens, JSON schema")
    assert (lost.status, diagnosis.tier) == ("no", "trainable-exact")
    assert "tokens are lost" in (lost.remedy or "")


async def test_a_server_that_cannot_force_a_call_is_asked_without() -> None:
    vllm = FakeVLLM(all_flags=True)

    def respond(path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        return (
            said({"error": "tool_choice"}, 400) if body and "tool_choice" in body else vllm(path, authorization, body)
        )

    with serving(respond) as url:
        assert set(statuses(await diagnose(url)).values()) == {"yes"}


async def test_without_usage_the_lengths_are_unknown() -> None:
    with serving(FakeVLLM(all_flags=True, edit=lambda body, answer: answer.pop("usage"))) as url:
        diagnosis = await diagnose(url)
    assert statuses(diagnosis)["exact tokens"] == "unknown"
    assert "usage says nothing" in details(diagnosis)["exact tokens"]


async def test_another_template_than_the_server_shows_is_found() -> None:
    def rendered_otherwise(body: dict[str, Any], answer: dict[str, Any]) -> None:
        if "prompt_token_ids" in answer:
            answer["prompt_token_ids"] = [1, 2, 4]

    with serving(FakeVLLM(all_flags=True, edit=rendered_otherwise)) as url:
        assert statuses(await diagnose(url))["chat template"] == "no"


async def test_a_paused_server_is_recognised() -> None:
    vllm = FakeVLLM(all_flags=True)
    vllm.is_paused = True

    def paused(path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        return HANG if path == CHAT else vllm(path, authorization, body)

    with serving(paused) as url:
        diagnosis = await diagnose(url, timeout_s=0.3)
    assert diagnosis.tier is None
    assert statuses(diagnosis)["chat"] == "unknown"
    assert "no answer within" in details(diagnosis)["chat"]
    assert "is paused" in details(diagnosis)["pause and resume"]


@pytest.mark.parametrize("how", ["ignores", "refuses"])
async def test_a_bare_endpoint(how: str) -> None:
    with ScriptedEndpoint("hi", **{how: ["n", "logprobs", "return_token_ids"]}) as endpoint:
        diagnosis = await diagnose(endpoint.url)
    found = statuses(diagnosis)
    assert diagnosis.tier == "trainable-retokenised"
    assert [found[name] for name in ("chat", "n", "logprobs", "token ids")] == ["yes", "no", "no", "no"]
    assert found["exact tokens"] == "no"
    assert "JSON schema" in found
    assert [found[name] for name in ROUTES] == ["no"] * 5
    assert len(diagnosis.next_steps) == 2


async def test_without_logprobs_the_step_to_exact_is_named() -> None:
    with ScriptedEndpoint("hi", ignores=["logprobs"]) as endpoint:
        diagnosis = await diagnose(endpoint.url)
    assert diagnosis.tier == "trainable-retokenised"
    [step] = diagnosis.next_steps
    assert "logprobs" in step


async def test_lost_tokens_everywhere_are_good_for_evaluation_only() -> None:
    with ScriptedEndpoint("hi", edits=[miscount]) as endpoint:
        diagnosis = await diagnose(endpoint.url)
    assert diagnosis.tier == "eval-only"
    assert "2 token ids, 2 logprobs, usage says 3" in details(diagnosis)["exact tokens"]
    assert "tokens are lost" in diagnosis.next_steps[0]


async def test_empty_completions_prove_nothing() -> None:
    with ScriptedEndpoint("", ignores=["return_token_ids"]) as endpoint:
        diagnosis = await diagnose(endpoint.url)
    assert statuses(diagnosis)["exact tokens"] == "unknown"
    assert any("thinks first" in step for step in diagnosis.next_steps)


async def test_response_format_that_is_ignored_is_found() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        diagnosis = await diagnose(endpoint.url)
    assert statuses(diagnosis)["JSON schema"] == "no"
    assert "'hi'" in details(diagnosis)["JSON schema"]


@pytest.mark.parametrize("key", [None, "sk-wrong"])
async def test_a_refused_key_is_said_and_not_shown(key: str | None) -> None:
    with ScriptedEndpoint("hi", api_key="sk-right") as endpoint:
        diagnosis = await diagnose(endpoint.url, model="scripted", api_key=key)
        assert (await diagnose(endpoint.url, api_key="sk-right")).tier == "trainable-exact"
    assert diagnosis.tier is None
    assert (statuses(diagnosis)["reachable"], statuses(diagnosis)["models"]) == ("yes", "no")
    assert "401" in details(diagnosis)["models"]
    assert "--api-key-env" in diagnosis.next_steps[0]
    assert "sk-" not in report(diagnosis) + diagnosis.model_dump_json()


@pytest.mark.parametrize(
    ("answer", "shows"),
    [
        (said({"detail": "Not Found"}, 404), "HTTP 404: Not Found"),
        (Fault(200, "<!doctype html><title>Sign in</title>", "text/html"), "<!doctype html>"),
        (SERVER_ERROR, "out of memory"),
        (said([]), "HTTP 200"),
        (said({"data": 5, "tokens": 3}), "HTTP 200"),
        (said({"data": ["m"], "choices": 3, "usage": []}), "HTTP 200"),
        (
            Fault(302, headers={"Location": "https://user:hunter2@host/v1/models"}),
            "redirects to https://host/v1/models",
        ),
    ],
)
@pytest.mark.parametrize("model", [None, "m"])
async def test_what_is_no_api(answer: Fault, shows: str, model: str | None) -> None:
    with serving(lambda *_: answer) as url:
        diagnosis = await diagnose(url, model=model)
    assert (diagnosis.tier, diagnosis.tried) == (None, (f"{url}/v1", url))
    assert statuses(diagnosis)["reachable"] == "yes"
    assert statuses(diagnosis)["chat"] in (["skipped"] if model is None else ["no", "unknown"])
    assert shows in details(diagnosis)["models"]
    assert diagnosis.next_steps
    assert "hunter2" not in report(diagnosis)


async def test_an_api_at_another_path_and_without_models_is_found() -> None:
    vllm = FakeVLLM(all_flags=True)

    def elsewhere(path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        return vllm(CHAT, authorization, body) if path == "/api/chat/completions" else said({}, 404)

    with serving(elsewhere) as url:
        diagnosis = await diagnose(f"{url}/api/", model="m")
    assert (diagnosis.base_url, diagnosis.tier) == (f"{url}/api", "trainable-exact")


async def test_fields_that_are_only_refused_together_are_left_out() -> None:
    def refuses(body: dict[str, Any], answer: dict[str, Any]) -> None:
        if body.keys() >= {"logprobs", "return_token_ids"}:
            answer.clear()

    with serving(FakeVLLM(all_flags=True, edit=refuses)) as url:
        diagnosis = await diagnose(url)
    assert diagnosis.tier == "trainable-retokenised"
    assert statuses(diagnosis)["exact tokens"] == "no"


async def test_a_wrong_model_is_told_the_right_ones() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        diagnosis = await diagnose(endpoint.url, model="other")
    assert (diagnosis.tier, statuses(diagnosis)["chat"]) == (None, "no")
    assert diagnosis.next_steps == ("ask for a model that it lists: scripted",)


def closed_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


async def test_nobody_answers() -> None:
    for url in (closed_port(), "http://no-such-host.invalid/v1", "http://host..name/v1"):
        diagnosis = await diagnose(url)
        assert diagnosis.tier is None
        assert {check.status for check in diagnosis.checks[1:]} == {"skipped"}
        assert "nothing answers" in report(diagnosis)
        assert len(report(diagnosis).splitlines()) < 10


@pytest.mark.parametrize("fault", [HANG, DROPPED])
async def test_hanging_and_dropped_connections_end(fault: Fault) -> None:
    with serving(lambda *_: fault) as url:
        diagnosis = await diagnose(url, model="m", timeout_s=0.3)
    assert statuses(diagnosis)["reachable"] == "no"
    assert ("no answer within 0.3 s" if fault is HANG else "disconnected") in details(diagnosis)["reachable"]


async def test_a_server_that_accepts_everything_is_not_probed_on() -> None:
    asked: list[str] = []

    def accepts(path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        asked.append(path)
        return FakeVLLM(all_flags=True)(path, authorization, body) if path in (CHAT, MODELS) else said({})

    with serving(accepts) as url:
        diagnosis = await diagnose(url)
    assert [statuses(diagnosis)[name] for name in ROUTES] == ["unknown"] * 5
    assert asked[-1] == "/v1/unload_lora_adapter"


@pytest.mark.parametrize(
    ("answer", "status", "shows"),
    [
        (said({"error": {"message": "LoRA is not enabled. Use --enable-lora"}}, 500), "no", "not enabled"),
        (said({"detail": "Not Found"}, 404), "no", "Not Found"),
        (said({"error": "busy"}, 503), "unknown", "busy"),
        (HANG, "unknown", "no answer"),
    ],
)
async def test_what_a_refused_adapter_says(answer: Fault, status: str, shows: str) -> None:
    vllm = FakeVLLM(all_flags=True)

    def respond(path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        return answer if path == "/v1/load_lora_adapter" else vllm(path, authorization, body)

    with serving(respond) as url:
        diagnosis = await diagnose(url, timeout_s=2)
    assert statuses(diagnosis)["LoRA load"] == status
    assert shows in details(diagnosis)["LoRA load"]


async def test_405_for_every_path_proves_no_route() -> None:
    vllm = FakeVLLM(all_flags=True)

    def respond(path: str, authorization: str | None, body: dict[str, Any] | None) -> Fault:
        return vllm(path, authorization, body) if path in (CHAT, MODELS) else said({}, 405)

    with serving(respond) as url:
        diagnosis = await diagnose(url)
    assert statuses(diagnosis)["pause and resume"] == "unknown"


@pytest.mark.parametrize("url", ["", "localhost:8000", "127.0.0.1:8000/v1", "ftp://host", "http://", "http://h:99999"])
async def test_a_malformed_url_is_a_wrong_use(url: str) -> None:
    with pytest.raises(ConfigError, match="url = "):
        await diagnose(url)
    assert main(["doctor", url]) == 2


async def test_a_key_that_no_header_can_carry_is_refused_unseen() -> None:
    with pytest.raises(ConfigError, match="API key") as refused:
        await diagnose("http://127.0.0.1:1", api_key="sk-sécret")
    assert "cret" not in str(refused.value)


async def test_white_space_around_a_key_is_not_sent() -> None:
    with ScriptedEndpoint("hi", api_key="sk-right") as endpoint:
        assert (await diagnose(endpoint.url, api_key="sk-right ")).tier == "trainable-exact"


def test_the_verb(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-right\n")
    with ScriptedEndpoint("hi", api_key="sk-right") as endpoint:
        assert main(["doctor", endpoint.url, "--api-key-env", "MY_KEY", "--json"]) == 0
        assert Diagnosis.model_validate_json(capsys.readouterr().out).tier == "trainable-exact"
        assert main(["doctor", endpoint.url]) == 1
    said = capsys.readouterr()
    assert said.out.startswith(endpoint.url)
    assert "Traceback" not in said.err
    assert main(["doctor", endpoint.url, "--api-key-env", "NOT_SET"]) == 2
    assert "NOT_SET" in capsys.readouterr().err


@pytest.fixture(scope="module")
def embedded() -> Iterator[ServerProcess]:
    with ServerProcess("bundled") as server:
        yield server


async def test_the_embedded_server(embedded: ServerProcess) -> None:
    def state() -> list[Any]:
        root = embedded.base_url.removesuffix("/v1")
        return [httpx.get(f"{root}/{path}").json() for path in ("v1/models", "weight_info", "is_paused")]

    before = state()
    diagnosis = await diagnose(embedded.base_url)
    assert state() == before
    found = statuses(diagnosis)
    assert diagnosis.tier == "trainable-exact"
    assert {name for name, status in found.items() if status == "no"} == {"tool calls", "JSON schema"}
    assert [found[name] for name in ROUTES] == ["yes"] * 5
    assert [found[f"exact tokens{mode}"] for mode in ("", ", n = 2", ", streamed")] == ["yes"] * 3
    assert details(diagnosis)["version"].startswith("r3agent ")


@pytest.mark.parametrize(
    ("refuses", "status", "detail"),
    [
        ((), "yes", ""),
        (("max_tokens",), "yes", "calls max_tokens max_completion_tokens"),
        (("temperature", "seed"), "no", "refuses temperature, seed"),
        (
            ("temperature", "top_p", "max_tokens", "max_completion_tokens", "stop"),
            "no",
            "refuses max_tokens, temperature, top_p, stop",
        ),
        (one_of_pair, "no", "refuses top_p; takes only one of temperature and top_p"),
        (only_default, "no", "takes only temperature = 1"),
    ],
)
async def test_the_refused_settings_are_named(refuses: Any, status: str, detail: str | None) -> None:
    with ScriptedEndpoint("hi", refuses=refuses) as endpoint:
        diagnosis = await diagnose(endpoint.url)
    assert statuses(diagnosis)["sampling settings"] == status
    assert details(diagnosis)["sampling settings"] == detail
    assert (diagnosis.tier, statuses(diagnosis)["chat"]) == ("trainable-exact", "yes")
    assert {statuses(diagnosis)[name] for name in ("exact tokens", "streaming", "n")} == {"yes"}


@pytest.mark.parametrize(
    "logprobs", [[-0.5], {"token_logprobs": [-0.5]}, [{"logprob": -0.5}], {"content": [-0.5]}, True]
)
async def test_logprobs_and_usage_of_any_shape_are_reported(logprobs: Any) -> None:
    def edit(answer: dict[str, Any]) -> None:
        answer["usage"] = "3"
        for choice in answer["choices"]:
            choice["logprobs"] = logprobs

    with ScriptedEndpoint("h", edits=[edit]) as endpoint:
        diagnosis = await diagnose(endpoint.url)
    assert statuses(diagnosis)["logprobs"] == ("no" if logprobs is True else "yes")
    assert "usage says nothing" in details(diagnosis)["exact tokens"]
