"""An instrumented client answers as the plain one does, whatever the endpoint makes of the recording's fields."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import openai
import pytest
from openai.resources.chat.completions import Completions

import r3agent
from r3agent.testing import ScriptedEndpoint
from r3agent.testing.faults import Fault, Json
from r3agent.testing.http import JsonServer

ASK: Any = {"model": "m", "messages": [{"role": "user", "content": "?"}]}
ADDED = {"logprobs", "return_token_ids"}
CHOICE = {"index": 0, "finish_reason": "stop"}


def answer(body: Json) -> Fault:
    if not body.get("stream"):
        choice = {**CHOICE, "message": {"role": "assistant", "content": "42"}}
        return Fault(body=json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}))
    deltas = [{"content": "4"}, {"content": "2"}]
    choices = [{**CHOICE, "finish_reason": None, "delta": delta} for delta in deltas] + [{**CHOICE, "delta": {}}]
    return stream(*({"id": "1", "model": "m", "choices": [choice]} for choice in choices))


def stream(*events: Json) -> Fault:
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return Fault(body=f"{body}data: [DONE]\n\n", content_type="text/event-stream")


def error(message: str, status: int = 400, **fields: Any) -> Fault:
    return Fault(status, json.dumps({"error": {"message": message, **fields}}))


@contextmanager
def endpoint(refusal: Callable[[Json], Fault | None]) -> Iterator[tuple[openai.OpenAI, list[Json]]]:
    """Serve answers, and the refusals of some requests; yield a plain client, and the requests."""
    received: list[Json] = []

    def respond(path: str, authorization: str | None, body: Json | None) -> Fault:
        assert body is not None
        received.append(body)
        return refusal(body) or answer(body)

    with JsonServer(respond) as server, openai.OpenAI(base_url=server.url, api_key="x", max_retries=0) as client:
        yield client, received


def create(client: openai.OpenAI) -> str | None:
    return client.chat.completions.create(**ASK).choices[0].message.content


def read_stream(client: openai.OpenAI) -> str | None:
    return "".join(c.choices[0].delta.content or "" for c in client.chat.completions.create(**ASK, stream=True))


FULL: Any = 'Invalid JSON payload received. Unknown name "return_token_ids": Cannot find field.'
REFUSALS = {
    "403": error("You are not allowed to request logprobs from this model", 403),
    "404": error("No endpoints found that support the requested parameters: logprobs", 404),
    "422": Fault(422, json.dumps({"detail": [{"loc": ["body", "logprobs"], "msg": "Extra inputs are not permitted"}]})),
    "500": error("Out of range float values are not JSON compliant", 500),
    "501": error("not implemented", 501),
    "401": error("This key is not authorized to request logprobs or return_token_ids", 401),
    "402": error("logprobs and return_token_ids need a paid plan", 402),
    "429": error("logprobs, return_token_ids: not allowed on your tier", 429),
    "list": Fault(400, json.dumps([{"error": {"code": 400, "message": FULL}}])),
    "no field": error("Your request contains unsupported parameters"),
    "no JSON": Fault(400, "bad request", "text/html"),
    "dropped": Fault(kind="drop"),
    "not JSON, 200": Fault(200, "<html>", "application/json"),
}
REFUSED = {"message": "logprobs are not supported", "code": 400}
ROLE = {"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}
BROKEN: Any = {"id": "1", "model": "m", "choices": [{**CHOICE, "finish_reason": "error", "error": REFUSED}]}
IN_200 = {
    "error in 200": Fault(200, json.dumps({"error": REFUSED})),
    "choice with an error": Fault(200, json.dumps({"choices": [{**BROKEN["choices"][0], "message": {"content": ""}}]})),
    "no choices": Fault(200, '{"id": "1", "choices": []}'),
    "no completion": Fault(200, "<html>", "text/html"),
}
IN_STREAM = {
    "choice with an error": stream({**BROKEN, "choices": [{**BROKEN["choices"][0], "delta": {}}]}),
    "error after the role": stream(ROLE, {"error": REFUSED}),
    "event of an error": Fault(200, f"event: error\ndata: {json.dumps(REFUSED)}\n\n", "text/event-stream"),
    "first event": stream({"error": {"message": "logprobs are not supported", "code": 400}}),
    "no event": stream(),
    "JSON for a stream": IN_200["error in 200"],
}


@pytest.mark.parametrize(
    ("use", "refusal"),
    [
        *(pytest.param(create, fault, id=name) for name, fault in {**REFUSALS, **IN_200}.items()),
        *(
            pytest.param(read_stream, fault, id=f"stream, {name}")
            for name, fault in {**REFUSALS, **IN_STREAM}.items()
            if name != "not JSON, 200"
        ),
    ],
)
def test_a_refused_request_is_made_again_as_it_was(use: Callable[[openai.OpenAI], str | None], refusal: Fault) -> None:
    with endpoint(lambda body: refusal if ADDED & body.keys() else None) as (plain, received):
        client = r3agent.instrument(plain)
        with r3agent.trace() as episode:
            assert use(client) == use(plain) == "42"
        asked = received[-1]
        n = len(received)
        with r3agent.trace() as again:
            assert use(client.with_options(timeout=5)) == "42"
    assert asked.keys() - {"stream"} == ASK.keys()
    assert [span.text for span in (*episode.spans, *again.spans)] == ["42", "42"]
    is_lasting = refusal.kind != "drop" and refusal is not REFUSALS["not JSON, 200"]
    assert len(received) - n == (1 if is_lasting else 2)


def test_versions_of_a_model_share_what_is_known_of_their_endpoint() -> None:
    refusal = error("logprobs and return_token_ids are not supported")
    with endpoint(lambda body: refusal if ADDED & body.keys() else None) as (plain, received):
        client = r3agent.instrument(plain)
        with r3agent.trace():
            for model in ("m@v0001", "m@v0002", "m", "another@v0001"):
                client.chat.completions.create(**{**ASK, "model": model})
    assert [(body["model"], bool(ADDED & body.keys())) for body in received] == [
        *[("m@v0001", True), ("m@v0001", False)],
        *[("m@v0002", False), ("m", False)],
        *[("another@v0001", True), ("another@v0001", False)],
    ]


@pytest.mark.parametrize(
    ("fault", "n_more"),
    [
        (error("Incorrect API key", 401), 0),
        (error("slow down", 429), 0),
        (error("maximum context length is 64 tokens"), 0),
        (error("temperature must be less than 2"), 1),
        (error("no such model", 404), 1),
        (error("out of memory", 500), 1),
        (Fault(200, '{"choices": ['), 1),
    ],
)
def test_errors_of_the_application_are_raised_unchanged(fault: Fault, n_more: int) -> None:
    with endpoint(lambda body: fault) as (plain, received):
        with pytest.raises(Exception, match=r"\w") as wanted:
            create(plain)
        client = r3agent.instrument(plain)
        with r3agent.trace() as episode:
            with pytest.raises(type(wanted.value)) as raised:
                create(client)
            episode.verdict(passed=False)  # of a call that failed
            with episode.span("retry", parent=episode.answer):
                pass
    assert str(raised.value) == str(wanted.value)
    assert type(raised.value.__context__) is type(wanted.value.__context__)
    assert len(received) == 2 + n_more
    assert episode.spans == ()


def test_a_passing_failure_does_not_end_the_recording_of_tokens() -> None:
    faults = [None, error("overloaded", 503), error("Out of range float values", 500)]
    with ScriptedEndpoint("42", faults=faults) as server:
        plain = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)
        asked: Any = {**ASK, "model": "scripted"}
        with r3agent.instrument(plain) as client, r3agent.trace() as episode:
            client.chat.completions.create(**asked)
            with pytest.raises(openai.InternalServerError, match="overloaded"):
                client.chat.completions.create(**asked)
            for _ in range(2):
                client.chat.completions.create(**asked)
    assert [span.capability for span in episode.spans] == [
        "trainable-exact",
        "trainable-retokenised",
        "trainable-exact",
    ]


def test_answers_have_nothing_that_was_not_asked_for() -> None:
    with ScriptedEndpoint("42") as server:
        plain = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)
        asked: Any = {**ASK, "model": "scripted"}
        with r3agent.instrument(plain) as client, r3agent.trace() as episode:
            assert client.chat.completions.create(**asked) == plain.chat.completions.create(**asked)
            chunks = list(client.chat.completions.create(**asked, stream=True))
            assert chunks == list(plain.chat.completions.create(**asked, stream=True))
            own = client.chat.completions.create(**asked, logprobs=True)
            assert own.choices[0].logprobs is not None
    assert [span.capability for span in episode.spans] == ["trainable-exact"] * 3


def test_streams_end_as_those_of_the_plain_client() -> None:
    with endpoint(lambda body: None) as (plain, _):
        client = r3agent.instrument(plain)
        with r3agent.trace() as episode:
            left = client.chat.completions.create(**ASK, stream=True)
            next(left)
            left.close()
            whole = client.chat.completions.create(**ASK, stream=True)
            assert (len(list(whole)), list(whole)) == (3, [])
            with client.chat.completions.create(**ASK, stream=True) as entered:
                next(iter(entered))
            assert entered.response.is_closed
    assert sorted((span.text, span.finish_reason) for span in episode.spans) == [
        ("4", None),
        ("4", None),
        ("42", "stop"),
    ]


async def test_async_streams_are_made_anew_without_the_fields() -> None:
    refusal = IN_STREAM["first event"]
    with endpoint(lambda body: refusal if ADDED & body.keys() else None) as (plain, received):
        client = openai.AsyncOpenAI(base_url=str(plain.base_url), api_key="x", max_retries=0)
        async with r3agent.instrument(client) as recorded:
            with r3agent.trace() as episode:
                chunks: AsyncIterator[Any] = await recorded.chat.completions.create(**ASK, stream=True)
                assert [c.choices[0].delta.content async for c in chunks] == ["4", "2", None]
    assert [span.text for span in episode.spans] == ["42"]
    assert [len(ADDED & body.keys()) for body in received] == [2, 1, 0]  # the one that it names, and then all


def test_what_cannot_be_recorded_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with endpoint(lambda body: Fault(body='{"object": "chat.completion"}')) as (plain, _):
        client = r3agent.instrument(plain)
        for _ in range(3):
            with r3agent.trace() as episode:
                client.chat.completions.create(**ASK)
                episode.verdict(passed=True, feedback={"note": {1}})  # type: ignore[arg-type]
    assert [m for m in caplog.messages if "chat completion is not recorded" in m] == [caplog.messages[0]]


def test_messages_that_no_json_holds_are_recorded() -> None:
    with endpoint(lambda body: None) as (plain, _):
        asked: Any = [{"role": "user", "content": "?", "n": 2**70, "at": float("inf")}]
        with r3agent.trace(metadata={"of": {1}, "n": float("nan")}) as episode:
            r3agent.instrument(plain).chat.completions.create(model="m", messages=[{**asked[0], "at": 1}])
            with pytest.raises(ValueError, match="JSON"):
                r3agent.instrument(plain).chat.completions.create(model="m", messages=asked)
    assert [span.text for span in episode.spans] == ["42"]
    assert episode.trajectory.task.messages[0]["n"] == 2**70


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file"])
def test_answers_to_media_are_recorded_and_not_trained_on(kind: str) -> None:
    asked: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": kind, kind: {"data": "aGk="}}]}]
    with ScriptedEndpoint("42") as server:
        plain = openai.OpenAI(base_url=server.url, api_key="x", max_retries=0)
        with r3agent.instrument(plain) as client, r3agent.trace() as episode:
            client.chat.completions.create(model="scripted", messages=asked)
            client.chat.completions.create(**{**ASK, "model": "scripted"})
    shown, text = episode.spans
    assert (shown.capability, text.capability) == ("eval-only", "trainable-exact")
    assert shown.capability_note == f"the prompt has parts that token ids do not rebuild: {kind}"
    assert shown.prompt_token_ids is not None
    assert episode.trajectory.task.messages == tuple(asked)


# ---- wrappers of tracers ----


async def test_generators_of_wrappers_are_recorded_when_they_are_read() -> None:
    with endpoint(lambda body: None) as (plain, received):
        create_sync, client = plain.chat.completions.create, openai.AsyncOpenAI(base_url=plain.base_url, api_key="x")
        create_async: Any = client.chat.completions.create

        def lazy(**options: Any) -> Iterator[Any]:
            yield from create_sync(**options)

        async def alazy(**options: Any) -> AsyncIterator[Any]:
            async for chunk in await create_async(**options):
                yield chunk

        plain.chat.completions.create = lazy  # type: ignore[method-assign, assignment]
        client.chat.completions.create = alazy  # type: ignore[method-assign, assignment]
        recorded: Any = r3agent.instrument(client)
        with r3agent.trace() as episode:
            assert read_stream(r3agent.instrument(plain)) == "42"
            assert len([chunk async for chunk in recorded.chat.completions.create(**ASK, stream=True)]) == 3
        assert read_stream(plain) == "42"
        await client.close()
    assert [span.text for span in episode.spans] == ["42", "42"]
    assert [body.keys() >= ADDED for body in received] == [True, True, False]


def wrapping(client: openai.OpenAI, seen: list[str]) -> openai.OpenAI:
    """Replace a method of the client, as LangSmith, Opik and instructor do."""
    plain = client.chat.completions.create

    @wraps(plain)
    def traced(*arguments: Any, **options: Any) -> Any:
        answered = plain(*arguments, **options)
        seen.append("stream" if options.get("stream") else type(answered).__name__)
        return answered

    client.chat.completions.create = traced  # type: ignore[method-assign]
    return client


ORDERS: dict[str, Callable[[openai.OpenAI, list[str]], openai.OpenAI]] = {
    "tracer first": lambda client, seen: r3agent.instrument(wrapping(client, seen)),
    "tracer last": lambda client, seen: wrapping(r3agent.instrument(client), seen),
    "instrumented twice": lambda client, seen: r3agent.instrument(wrapping(r3agent.instrument(client), seen)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_wrappers_on_the_client_are_kept(order: str) -> None:
    seen: list[str] = []
    with endpoint(lambda body: None) as (plain, received):
        client = ORDERS[order](plain, seen)
        with r3agent.trace() as episode:
            assert (create(client), read_stream(client)) == ("42", "42")
            assert client.chat.completions.with_raw_response.create(**ASK).parse().choices
        assert create(client) == "42"
        n_seen = len(seen)
        create(plain)  # not recorded, and traced as before
    assert [span.text for span in episode.spans] == ["42"] * 3
    assert seen[:2] == ["ChatCompletion", "stream"]
    assert n_seen >= 3
    assert [body.keys() >= ADDED for body in received] == [True] * 3 + [False] * 2


def test_wrappers_of_the_class_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Langfuse's `langfuse.openai` and OpenTelemetry's instrumentors patch the SDK's classes."""
    seen: list[Any] = []
    plain_create = Completions.create

    def traced(self: Any, *arguments: Any, **options: Any) -> Any:
        seen.append(plain_create(self, *arguments, **options))
        return seen[-1]

    with endpoint(lambda body: None) as (plain, _):
        before = r3agent.instrument(plain)
        monkeypatch.setattr(Completions, "create", traced)
        with r3agent.trace() as episode:
            assert create(before) == create(r3agent.instrument(plain)) == "42"
    assert (len(seen), len(episode.spans)) == (2, 2)


@pytest.mark.parametrize("is_first", [True, False])
async def test_langsmiths_wrapper_is_kept(is_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    wrappers = pytest.importorskip("langsmith.wrappers")
    monkeypatch.setenv("LANGSMITH_TRACING", "false")
    with endpoint(lambda body: None) as (plain, _):
        client = openai.AsyncOpenAI(base_url=str(plain.base_url), api_key="x", max_retries=0)
        wrap = wrappers.wrap_openai
        async with r3agent.instrument(wrap(client)) if is_first else wrap(r3agent.instrument(client)) as recorded:
            assert hasattr(recorded.chat.completions.create, "__wrapped__")
            with r3agent.trace() as episode:
                answered = await recorded.chat.completions.create(**ASK)
                chunks = [c async for c in await recorded.chat.completions.create(**ASK, stream=True)]
    assert (answered.choices[0].message.content, len(chunks)) == ("42", 3)
    assert [span.text for span in episode.spans] == ["42", "42"]
