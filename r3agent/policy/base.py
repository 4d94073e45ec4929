"""Policy protocol and sampling settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from r3agent.records.trajectory import Generation, Message, Record


class Sampling(Record):
    """Sampling settings, sent with every request and stored on every span."""

    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature; 0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: total probability of the most likely tokens to sample from."""
    max_tokens: int = Field(default=512, ge=1)
    """Maximum number of tokens in a completion."""
    seed: int | None = None
    """Seed of the first choice; choice i of a request has seed + i, as in vLLM."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    extra: dict[str, Any] = {}
    """Additional fields of the request body, for endpoint-specific options."""

    def body(self) -> dict[str, Any]:
        """Return the fields of a chat completion request."""
        body = self.model_dump(exclude={"extra"}, exclude_none=True, mode="json")
        if not self.stop:
            del body["stop"]
        return {**body, **self.extra}

    def for_choice(self, i: int) -> Sampling:
        """Return the settings for sampling choice i alone, with its own seed."""
        return self if self.seed is None else self.model_copy(update={"seed": self.seed + i})


@runtime_checkable
class Policy(Protocol):
    """Interface between the graph and a model."""

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Sample `n` completions of one conversation.

        Raises:
            PolicyError: the endpoint did not return them.
        """
        ...

    async def aclose(self) -> None:
        """Close connections; the policy cannot be used afterwards."""
        ...


@runtime_checkable
class Pinnable(Protocol):
    """Policy whose version may change between two calls."""

    def pinned(self, model: str) -> Policy:
        """Return this policy pinned to the version that answered as `model`, as long as it is served."""
        ...
