"""Wrappers that tracers put on a client, kept on its instrumented copy.

LangSmith's `wrap_openai`, Opik's `track_openai` and others replace methods of the client's resources, such as
`client.chat.completions.create`, by functions that call the method they found. The copy gets the same functions; as
these lead to the client's own resources, a context variable leads their requests on to the copy's `post`. Libraries
that patch the SDK's classes, as Langfuse and OpenTelemetry's instrumentors do, need nothing of this.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import isasyncgen, isawaitable, isfunction, isgenerator
from typing import Any

_post: ContextVar[Callable[..., Any] | None] = ContextVar("r3agent_post", default=None)

OWN = ("post", "copy", "with_options")
"""Methods of an instrumented client that are its own."""


def keep_wrappers(client: Any, copied: Any) -> None:
    """Put the methods that were replaced on a client, or on its resources, on its copy."""
    for name, wrapper in _replaced(client):
        if name not in OWN:
            setattr(copied, name, wrapper)
    for resource, counterpart in _resources(client, copied):
        for name, wrapper in _replaced(resource):
            _lead_on(resource)
            setattr(counterpart, name, _through(wrapper, copied.post))


def _resources(client: Any, copied: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the resources that a client has made, such as `chat.completions`, each with that of the copy."""
    for name, resource in list(vars(client).items()):
        if not name.startswith("_") and hasattr(resource, "_client") and hasattr(resource, "_post"):
            counterpart = getattr(copied, name)
            yield resource, counterpart
            yield from _resources(resource, counterpart)


def _replaced(owner: Any) -> Iterator[tuple[str, Any]]:
    """Yield the methods of an object that are not those of its class."""
    for name, value in list(vars(owner).items()):
        if not name.startswith("_") and callable(value) and isfunction(getattr(type(owner), name, None)):
            yield name, value


def _lead_on(resource: Any) -> None:
    """Let a resource send what is called by way of a copy to the copy's `post`."""
    plain = resource._post
    if hasattr(plain, "leads_on"):
        return

    def post(*arguments: Any, **options: Any) -> Any:
        return (_post.get() or plain)(*arguments, **options)

    post.leads_on = True  # pyright: ignore[reportFunctionMemberAccess]
    resource._post = post


def _through(wrapper: Callable[..., Any], post: Callable[..., Any]) -> Callable[..., Any]:
    """Lead the requests of a wrapper to `post`, also those of a generator, which begin when it is read."""

    @wraps(wrapper)
    def call(*arguments: Any, **options: Any) -> Any:
        with leading():
            answer = wrapper(*arguments, **options)
        if isgenerator(answer):
            return generated(answer)
        if isasyncgen(answer):
            return agenerated(answer)
        return awaited(answer) if isawaitable(answer) else answer

    @contextmanager
    def leading() -> Generator[None]:
        token = _post.set(post)
        try:
            yield
        finally:
            _post.reset(token)

    async def awaited(answer: Any) -> Any:
        with leading():
            answer = await answer
        return generated(answer) if isgenerator(answer) else agenerated(answer) if isasyncgen(answer) else answer

    def generated(answer: Any) -> Generator[Any]:
        with closing(answer):
            while True:
                with leading():
                    chunk = next(answer, _post)
                if chunk is _post:
                    return
                yield chunk

    async def agenerated(answer: Any) -> AsyncGenerator[Any]:
        async with aclosing(answer):
            while True:
                with leading():
                    chunk = await anext(answer, _post)
                if chunk is _post:
                    return
                yield chunk

    return call
