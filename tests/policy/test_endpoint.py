"""Failures on the wire: what is tried again, how often, and the message in the end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import traceback
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from r3agent.errors import (
    AccessError,
    ConfigError,
    ContextLengthError,
    EndpointError,
    PolicyError,
    ProtocolError,
    R3Error,
    RequestError,
)
from r3agent.http.slots import Slots
from r3agent.policy import OpenAIPolicy
from r3agent.policy.endpoint import Connection, Endpoint
from r3agent.records.trajectory import Generation
from r3agent.testing import (
    DROPPED,
    HANG,
    HTML_PAGE,
    MALFORMED_JSON,
    PROMPT_TOO_LONG,
    SERVER_ERROR,
    Fault,
    ScriptedEndpoint,
    limited_until,
    rate_limited,
)

MESSAGES = [{"role": "user", "content": "hello"}]


async def sample(endpoint: ScriptedEndpoint, model: str | None = None, n: int = 1, **settings: Any) -> list[Generation]:
    policy = OpenAIPolicy(endpoint.url, model or endpoint.model, **settings)
    try:
        return await policy.sample(MESSAGES, n=n)
    finally:
        await policy.aclose()


# ---- tried again ----


@pytest.mark.parametrize(
    "fault",
    [
        *[rate_limited(0.01), SERVER_ERROR, DROPPED, HANG, Fault(408), Fault(409), Fault(503, "<html>", "text/html")],
        *[MALFORMED_JSON, Fault(), Fault(body='{"choices": []}')],
    ],
    ids=["429", "500", "dropped", "timeout", "408", "409", "503", "json", "empty", "no choices"],
)
async def test_a_passing_fault_is_tried_again(fault: Fault) -> None:
    with ScriptedEndpoint("hi", faults=[fault, None]) as endpoint:
        [generation] = await sample(endpoint, timeout_s=0.3 if fault is HANG else 60)
    assert generation.text == "hi"
    assert len(endpoint.received) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (rate_limited(0.01), "429 slow down (tried 3 times)"),
        (SERVER_ERROR, "500 out of memory (tried 3 times)"),
        (DROPPED, "(tried 3 times); is the server running?"),
        (HANG, "no answer within timeout_s = 0.2 (tried 3 times); raise it or ask for less"),
    ],
    ids=["429", "500", "dropped", "timeout"],
)
async def test_a_lasting_fault_ends_after_max_tries(fault: Fault, message: str) -> None:
    with ScriptedEndpoint("hi", faults=[fault] * 4) as endpoint, pytest.raises(EndpointError) as raised:
        await sample(endpoint, max_tries=3, timeout_s=0.2 if fault is HANG else 60)
    assert len(endpoint.received) == 3
    assert message in str(raised.value)
    assert endpoint.url in str(raised.value)


@pytest.mark.parametrize(
    ("fault", "streamed"),
    [(HTML_PAGE, False), (HTML_PAGE, True), (Fault(body='{"status": "ok"}'), False), (Fault(body="[1]"), False)],
    ids=["html", "html for a stream", "json", "list"],
)
async def test_a_web_page_is_tried_again_only_after_an_answer(fault: Fault, streamed: bool) -> None:
    on_delta = (lambda i, text: None) if streamed else None
    with ScriptedEndpoint("hi", faults=[None, fault, None]) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            for _ in range(2):
                [generation] = await policy.sample(MESSAGES, on_delta=on_delta)
                assert generation.text == "hi"
        assert len(endpoint.received) == 3
    with ScriptedEndpoint("hi", faults=[fault] * 2) as endpoint:
        async with OpenAIPolicy(endpoint.url, endpoint.model) as policy:
            with pytest.raises(ProtocolError, match="base_url must be that of an OpenAI-compatible API") as raised:
                await policy.sample(MESSAGES, on_delta=on_delta)
        assert ("tried" in str(raised.value), len(endpoint.received)) == (False, 1)


@pytest.mark.parametrize("fault", [MALFORMED_JSON, Fault()], ids=["json", "empty"])
async def test_an_answer_that_is_none_ends_after_max_tries(fault: Fault) -> None:
    message = r"is not a chat completion \(.*\(tried 2 times\)\)"
    with ScriptedEndpoint("hi", faults=[fault] * 3) as endpoint, pytest.raises(ProtocolError, match=message):
        await sample(endpoint, max_tries=2)
    assert len(endpoint.received) == 2


async def test_retry_after_is_honoured() -> None:
    with ScriptedEndpoint("hi", faults=[rate_limited(0.6)]) as endpoint:
        start = time.monotonic()
        await sample(endpoint)
        assert time.monotonic() - start >= 0.6  # without the header, the first wait is half a second at most


async def test_retry_after_may_be_a_date() -> None:
    then = int(time.time()) + 2
    with ScriptedEndpoint(
        "hi", faults=[Fault(429, headers={"Retry-After": formatdate(then, usegmt=True)})]
    ) as endpoint:
        await sample(endpoint)
    assert time.time() >= then


@pytest.mark.parametrize("style", ["openai", "anthropic"])
async def test_a_limited_rate_waits_for_its_reset(style: Any) -> None:
    then = datetime.now(UTC) + timedelta(seconds=0.6)
    reset = "600ms" if style == "openai" else then.isoformat()
    with ScriptedEndpoint("hi", faults=[limited_until(reset, style=style)]) as endpoint:
        await sample(endpoint)
    assert datetime.now(UTC) >= then


async def test_a_server_that_asks_to_come_back_in_an_hour_is_asked_once() -> None:
    with ScriptedEndpoint("hi", faults=[rate_limited(3600)] * 2) as endpoint:
        with pytest.raises(EndpointError, match="slow down; it asks to wait 3600 s, and a request waits at most 300 s"):
            await sample(endpoint)
        with pytest.raises(EndpointError):  # nor is the next request held back
            await sample(endpoint)
        assert len(endpoint.received) == 2


@pytest.mark.parametrize("header", ["soon", "-1", "nan", ""])
async def test_a_retry_after_that_says_nothing_is_no_obstacle(header: str) -> None:
    with ScriptedEndpoint("hi", faults=[Fault(429, headers={"Retry-After": header})]) as endpoint:
        assert len(await sample(endpoint)) == 1


async def test_an_endpoint_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    policy = OpenAIPolicy(url, "m", max_tries=2)
    with pytest.raises(EndpointError, match=r"\(tried 2 times\); is the server running\?"):
        await policy.sample(MESSAGES)
    await policy.aclose()


# ---- not tried again ----


@pytest.mark.parametrize(
    ("fault", "error", "remedy"),
    [
        (PROMPT_TOO_LONG, ContextLengthError, "maximum context length"),
        (Fault(422, '{"detail": "bad"}'), RequestError, "bad"),
        (Fault(401), AccessError, "check the API key"),
        (Fault(403), AccessError, "check the API key"),
        (Fault(404), AccessError, "check the model's name; base_url must be that of an OpenAI-compatible API"),
    ],
    ids=["400", "422", "401", "403", "404"],
)
async def test_a_lasting_answer_is_not_tried_again(fault: Fault, error: type[R3Error], remedy: str) -> None:
    with ScriptedEndpoint("hi", faults=[fault]) as endpoint, pytest.raises(error, match=remedy) as raised:
        await sample(endpoint)
    assert type(raised.value) is error
    assert len(endpoint.received) == 1


async def test_a_refused_key_is_no_refused_field() -> None:
    refusal = Fault(401, '{"error": {"message": "no logprobs for this key"}}')
    with ScriptedEndpoint("hi", faults=[refusal]) as endpoint, pytest.raises(AccessError):
        await sample(endpoint)
    assert len(endpoint.received) == 1


async def test_a_wrong_model_is_named() -> None:
    with ScriptedEndpoint("hi") as endpoint, pytest.raises(AccessError, match="The model `qwen` does not exist"):
        await sample(endpoint, model="qwen")


async def test_a_base_url_without_v1_is_told_what_it_lacks() -> None:
    with ScriptedEndpoint("hi") as endpoint:
        policy = OpenAIPolicy(endpoint.url.removesuffix("/v1"), endpoint.model)
        with pytest.raises(AccessError, match=f"base_url usually ends in /v1: try {endpoint.url}$"):
            await policy.sample(MESSAGES)
        await policy.aclose()


def test_a_base_url_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="base_url = 'localhost:8000/v1': must start with http://"):
        OpenAIPolicy("localhost:8000/v1", "m")


@pytest.mark.parametrize(
    "url", ["http://", "http:///v1", "http://host:port/v1", "http://127.0.0.1:99999/v1", "http://[::1/v1"]
)
def test_a_base_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url"):
        OpenAIPolicy(url, "m")


# ---- secrets ----


@pytest.mark.parametrize(
    "fault",
    [DROPPED, HANG, SERVER_ERROR, PROMPT_TOO_LONG, Fault(401), Fault(404), HTML_PAGE],
    ids=["dropped", "timeout", "500", "400", "401", "404", "html"],
)
async def test_a_password_in_the_url_is_never_shown(fault: Fault) -> None:
    with ScriptedEndpoint("hi", faults=[fault]) as endpoint:
        url = endpoint.url.replace("//", "//me:open-sesame@")
        policy = OpenAIPolicy(url, endpoint.model, max_tries=1, timeout_s=0.3 if fault is HANG else 60)
        with pytest.raises(R3Error) as raised:
            await policy.sample(MESSAGES)
        await policy.aclose()
    assert endpoint.url in str(raised.value)
    assert "open-sesame" not in "".join(traceback.format_exception(raised.value))
    assert "open-sesame" not in repr(policy)


async def test_an_endpoint_that_is_not_there_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://me:open-sesame@127.0.0.1:{unused.getsockname()[1]}/v1"
    policy = OpenAIPolicy(url, "m", max_tries=1)
    with pytest.raises(EndpointError, match="is the server running") as raised:
        await policy.sample(MESSAGES)
    await policy.aclose()
    assert "open-sesame" not in "".join(traceback.format_exception(raised.value))


async def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    key = "sk-not-for-your-eyes"
    quoted = r"401 Incorrect API key provided: Bearer \[the API key\]"
    with ScriptedEndpoint("hi", api_key="another") as endpoint, pytest.raises(AccessError, match=quoted) as raised:
        await sample(endpoint, api_key=key)
    assert key not in "".join(traceback.format_exception(raised.value))
    with ScriptedEndpoint("hi", api_key=key) as endpoint:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        [generation] = await sample(endpoint)
        assert endpoint.received[0].authorization == f"Bearer {key}"
        assert key not in generation.model_dump_json()
        assert key not in repr(OpenAIPolicy(endpoint.url, endpoint.model))


async def test_white_space_around_the_key_is_not_sent() -> None:
    with ScriptedEndpoint("hi", api_key="sk-q") as endpoint:
        assert len(await sample(endpoint, api_key="sk-q ")) == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"error": {"message": "slow sk-q"}}', r"502 inside a 200: slow \[the API key\]"),
        ('{"key": "' + "x" * 65 + 'sk-quiet"}', r"not a chat completion \(ForeignAnswerError: it has no choices\)"),
    ],
)
async def test_a_success_that_is_no_completion_is_shown_without_the_key(body: str, message: str) -> None:
    key = "sk-quiet" if "quiet" in body else "sk-q"
    spoiled = ScriptedEndpoint("hi", faults=[Fault(200, body)])
    with spoiled as endpoint, pytest.raises(PolicyError, match=message) as raised:
        await sample(endpoint, api_key=f"{key} ", max_tries=1)
    assert "sk-" not in str(raised.value)
    assert len(endpoint.received) == 1


async def test_a_request_that_cannot_be_sent_is_not_tried_again() -> None:
    tries: list[httpx.Request] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        raise httpx.LocalProtocolError("Illegal header value b'Bearer sk-q'")

    endpoint = Endpoint("http://h/v1", api_key="sk-q", concurrency=1, timeout_s=5, outage_s=0, max_tries=3)
    client = httpx.AsyncClient(transport=httpx.MockTransport(refuse), headers={"Authorization": "Bearer sk-q"})
    endpoint._connections[asyncio.get_running_loop()] = Connection(client, Slots(1))
    with pytest.raises(RequestError, match=r"cannot be sent: Illegal header value b'Bearer \[the API key\]'"):
        await endpoint.post("/chat/completions", {}, take=lambda content: None)
    assert len(tries) == 1


# ---- many at once ----


async def test_no_more_requests_are_under_way_than_concurrency() -> None:
    lock, both = threading.Lock(), threading.Barrier(2, timeout=30)
    under_way: list[int] = [0]
    most: list[int] = []

    def answer(body: dict[str, Any], i: int) -> str:
        with lock:
            under_way[0] += 1
            most.append(under_way[0])
        both.wait()
        with lock:
            under_way[0] -= 1
        return "hi"

    with ScriptedEndpoint(answer) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model, concurrency=2)
        await asyncio.gather(*(policy.sample(MESSAGES) for _ in range(8)))
        await policy.aclose()
    assert max(most) == 2


async def test_a_wait_for_a_free_connection_is_no_timeout() -> None:
    with ScriptedEndpoint("hi", faults=[HANG, None]) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model, concurrency=1, timeout_s=0.5, max_tries=1)
        hangs, waits = await asyncio.gather(policy.sample(MESSAGES), policy.sample(MESSAGES), return_exceptions=True)
        await policy.aclose()
    assert isinstance(hangs, EndpointError)
    assert not isinstance(waits, BaseException)


async def test_a_cancelled_sample_leaves_no_request_behind() -> None:
    with ScriptedEndpoint("hi", faults=[HANG] * 3) as endpoint:
        policy = OpenAIPolicy(endpoint.url, endpoint.model)
        samples = [asyncio.create_task(policy.sample(MESSAGES)) for _ in range(3)]
        await asyncio.to_thread(endpoint.wait_for_hanging, 3)
        for task in samples:
            task.cancel()
        await asyncio.to_thread(endpoint.wait_for_hanging, 0)
        assert all(
            isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*samples, return_exceptions=True)
        )
        await policy.aclose()


async def test_when_one_of_several_requests_fails_none_is_left_behind() -> None:
    with ScriptedEndpoint("hi", ignores=["n"], faults=[None, HANG, PROMPT_TOO_LONG]) as endpoint:
        with pytest.raises(RequestError):
            await sample(endpoint, n=3)
        await asyncio.to_thread(endpoint.wait_for_hanging, 0)
    assert len(endpoint.received) == 3
