"""LangChain models that are built on OpenAI clients, copied with other clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import openai

from r3agent.errors import ConfigError

ROOTS = {"client": "root_client", "async_client": "root_async_client"}
"""Fields of `langchain_openai.BaseChatOpenAI` and its subclasses: chat completions, and the client that they are of."""

BOUND = "bound"
"""Field of what `bind_tools`, `with_config` and `with_retry` return: the model."""


def has_clients(model: Any) -> bool:
    """Return True for a model, or a binding of one, that is built on OpenAI clients."""
    fields = getattr(type(model), "model_fields", {})
    return {*ROOTS, *ROOTS.values()} <= {*fields} or (BOUND in fields and has_clients(getattr(model, BOUND)))


def with_clients(model: Any, instrumented: Callable[[Any], Any]) -> Any:
    """Copy a model, with the clients that a function returns for its own.

    Raises:
        ConfigError: the model was made with something else as its client.
    """
    if BOUND in type(model).model_fields:
        return model.model_copy(update={BOUND: with_clients(getattr(model, BOUND), instrumented)})
    changed: dict[str, Any] = {}
    for name, root in ROOTS.items():
        if (completions := getattr(model, name)) is None:
            continue  # a key that only async calls can get
        own = getattr(model, root) or getattr(completions, "_client", None)
        if not isinstance(own, openai.OpenAI | openai.AsyncOpenAI):
            raise ConfigError(
                f"{type(model).__name__}: its {name} is a {type(completions).__name__}, which is not of an OpenAI "
                "client; make the model with base_url and api_key, or pass client=OpenAI(...).chat.completions"
            )
        changed[root] = copied = instrumented(own)
        changed[name] = copied.chat.completions
    return model.model_copy(update=changed)
