"""Policy protocol, and the settings of sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from r3agent.records.trajectory import Generation, Message, Record


class Sampling(Record):
    """How completions are drawn; sent with every request and stored on every span."""

    temperature: float = Field(default=1.0, ge=0)
    """0 takes the most likely token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """The smallest set of most likely tokens with this much probability is drawn from."""
    max_tokens: int = Field(default=512, ge=1)
    """Per completion."""
    seed: int | None = None
    """Choice i of a request is drawn with seed + i, as vLLM numbers them."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion."""
    extra: dict[str, Any] = {}
    """Further fields of the request body, for options only this endpoint knows."""

    def body(self) -> dict[str, Any]:
        """The fields of a chat completion request."""
        body = self.model_dump(exclude={"extra"}, exclude_none=True, mode="json")
        if not self.stop:
            del body["stop"]
        return {**body, **self.extra}

    def for_choice(self, i: int) -> Sampling:
        """What draws choice i alone: a seeded request that is merely repeated gives the same completion again."""
        return self if self.seed is None else self.model_copy(update={"seed": self.seed + i})


@runtime_checkable
class Policy(Protocol):
    """What the graph needs of a model."""

    async def sample(
        self,
        messages: Sequence[Message],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        """Draw `n` completions of one conversation.

        Raises:
            PolicyError: the endpoint did not give them.
        """
        ...

    async def aclose(self) -> None:
        """Release connections; the policy is not used afterwards."""
        ...


@runtime_checkable
class Pinnable(Protocol):
    """A policy whose version may change between two calls."""

    def pinned(self, model: str) -> Policy:
        """The same policy with the version that answered as `model`, as long as it is served."""
        ...
