"""Agent that is a Python function on an OpenAI client.

    async def agent(messages, client):
        answer = await client.chat.completions.create(model="policy", messages=messages, tools=TOOLS)
        ...
        return answer.choices[0].message

    graph = build_graph(policy=OpenAIPolicy(URL, "qwen"), verifier=check, agent=agent)

An async function gets an `AsyncOpenAI`, any other an `OpenAI`, and runs in a thread of its own. Both ask the policy's
endpoint; `model="policy"` is the version that the episode began with. All calls of the client are steps of the try, in
whatever task or thread they are made. The client is closed at the end of the try: what the function left running can
ask nothing more. A parameter `environment` gets the world of the try, and `task` the task.

The answer is the text that the function returns, or that of the assistant message; with `None` it is the last step's.
"""

from __future__ import annotations

import inspect
import ssl
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from copy import deepcopy
from functools import cache, partial
from typing import Any, cast

import httpx
import openai
from openai.types.chat import ChatCompletion

from r3agent._util.aio import in_own_thread
from r3agent._util.messages import shorten
from r3agent.episodes.agents.base import AgentCall, AgentEnd
from r3agent.errors import ConfigError
from r3agent.http.client import CONNECT_TIMEOUT_S, ClientSettings
from r3agent.http.errors import NO_KEY
from r3agent.policy import Access, Policy, Routed
from r3agent.recording.instrument import bind, instrument
from r3agent.records.reply import text_of

MAX_CONNECTIONS = 1000
"""Maximum number of connections of one try, as in the SDK's own clients."""

BY_NAME = ("environment", "task")
"""Parameters that a function can have besides the messages and the client."""


class FunctionAgent:
    """Adapter of a function `(messages, client)`.

    Raises:
        ConfigError: it takes other arguments, or yields its answer.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._name = getattr(function, "__qualname__", type(function).__qualname__)
        called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
        if inspect.isasyncgenfunction(called) or inspect.isgeneratorfunction(called):
            raise ConfigError(f"agent = {self._name}: it yields; return the answer")
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
        self._named = _named(function, self._name)
        # Each try has a copy of this client, which shares what endpoints refuse.
        given: Any = {"base_url": "http://127.0.0.1", "api_key": NO_KEY, "http_client": _http(self._is_async, Access())}
        self._client: Any = instrument(openai.AsyncOpenAI(**given) if self._is_async else openai.OpenAI(**given))

    def __repr__(self) -> str:
        return f"FunctionAgent({self._name})"

    async def run(self, call: AgentCall) -> AgentEnd:
        check_route(call.policy, self._name)
        values = {"environment": call.environment, "task": call.task.model_copy(deep=True)}
        named = {name: values[name] for name in self._named}
        messages = deepcopy(list(call.messages))
        async with self._opened(call) as client:
            function = partial(self._function, messages, client, **named)
            answer = await function() if self._is_async else await in_own_thread(function)
            return AgentEnd(self._text(answer))

    @asynccontextmanager
    async def _opened(self, call: AgentCall) -> AsyncGenerator[Any]:
        """Open a client of the policy's endpoint for one try."""
        terms = call.scope.terms
        assert terms is not None  # the policy has a route
        access = terms.access or Access()
        if access.http_client is not None and not self._is_async:
            raise ConfigError(
                f"agent = {self._name}: the policy's http_client is async, and the function is not; write it with "
                "async def, or give the policy proxy= and verify= in place of the client"
            )
        headers = {name: value for name, value in terms.headers.items() if name.lower() != "authorization"}
        bearer = next((v for name, v in terms.headers.items() if name.lower() == "authorization"), "")
        settings: dict[str, Any] = {
            "base_url": terms.base_url,
            "api_key": bearer.removeprefix("Bearer ") or NO_KEY,
            "default_headers": headers,
            "max_retries": access.max_tries - 1,
            "timeout": httpx.Timeout(access.timeout_s, connect=min(CONNECT_TIMEOUT_S, access.timeout_s)),
        }
        http = access.http_client or _http(self._is_async, access)
        try:
            yield bind(self._client.copy(**settings, http_client=http), call.episode, call.scope)
        finally:
            if isinstance(http, httpx.Client):
                http.close()
            elif http is not access.http_client:
                await http.aclose()

    def _text(self, answer: Any) -> str | None:
        """Return the text of what the function returned; `None` for the last step's.

        Raises:
            TypeError: it is neither text nor an assistant message.
        """
        if inspect.isawaitable(answer):
            getattr(answer, "close", lambda: None)()
            raise TypeError(f"{self._name} returned {shorten(answer)}; write it with async def")
        if answer is None or isinstance(answer, str):
            return answer
        found = answer.choices[0].message if isinstance(answer, ChatCompletion) else answer
        message = found if isinstance(found, Mapping) else _dumped(found)
        if message is None or message.get("role") != "assistant":
            raise TypeError(
                f"{self._name} returned {shorten(answer)}: no answer; return text, an assistant message such as "
                "completion.choices[0].message, or None for the text of its last model call"
            )
        return text_of(message.get("content")) or None


def check_route(policy: Policy, name: str) -> None:
    """Check that the policy's model is behind an endpoint, which a client can ask.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(policy, Routed):
        raise ConfigError(
            f"agent = {name}: it gets a client of the policy's endpoint, and policy = {shorten(policy)} has none; pass "
            "an OpenAIPolicy (for tests, of a ScriptedEndpoint), or bring the agent as a LangChain runnable"
        )


def _named(function: Callable[..., Any], name: str) -> tuple[str, ...]:
    """Return the parameters of a function that are passed by name.

    Raises:
        ConfigError: it takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable without a signature
        return ()
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    named = [n for n in BY_NAME if n in [*signature.parameters][2:]]
    try:
        signature.bind(None, None, **dict.fromkeys(named))
    except TypeError as fault:
        raise ConfigError(
            f"agent = {name}: it does not take (messages, client): {fault}; write async def agent(messages, client), "
            "and if it needs them, parameters environment and task"
        ) from None
    return BY_NAME if takes_any else tuple(named)


def _dumped(answer: Any) -> Mapping[str, Any] | None:
    """Return an SDK's message as JSON; `None` if it is none."""
    dump = getattr(answer, "model_dump", None)
    found = dump() if callable(dump) and not isinstance(answer, type) else None
    return cast(Mapping[str, Any], found) if isinstance(found, Mapping) else None


def _http(is_async: bool, access: Access) -> httpx.AsyncClient | httpx.Client:
    settings = ClientSettings(
        timeout_s=access.timeout_s,
        max_connections=MAX_CONNECTIONS,
        proxy=access.proxy,
        verify=_ssl_context() if access.verify is True else access.verify,
    )
    client = settings.open_async() if is_async else settings.open()
    client.follow_redirects = True
    return client


@cache
def _ssl_context() -> ssl.SSLContext:
    """Make the context that all clients share: it takes 0.2 s, a client without it 0.1 ms."""
    return httpx.create_ssl_context()
