"""Check the policy and the verifier of an application, which can be of any class: only what the graph calls."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import Any

from r3agent._util.messages import shorten
from r3agent.errors import ConfigError
from r3agent.policy import Policy
from r3agent.records.trajectory import Generation
from r3agent.verifiers.interface import takes_environment


def check_policy(policy: object) -> None:
    """Check that `policy` can sample.

    Raises:
        ConfigError: it is a class, has no `sample`, or one with other parameters; the message names the adapter of a
            model or client of another library.
    """
    if isinstance(policy, type):
        raise ConfigError(f"policy = {policy.__name__}: a class; pass an instance, such as {policy.__name__}(…)")
    sample: Any = getattr(policy, "sample", None)
    if not callable(sample):
        libraries = {base.__module__.partition(".")[0] for base in type(policy).__mro__}
        remedy = f"pass OpenAIPolicy(base_url, {repr(policy) if isinstance(policy, str) else 'model'})"
        if "langchain_core" in libraries:
            remedy = "pass r3agent.policy.langchain.ChatModelPolicy(model)"
        elif "openai" in libraries:
            remedy = f"pass OpenAIPolicy({str(getattr(policy, 'base_url', ''))!r}, model)"
        raise ConfigError(
            f"policy = {shorten(policy)}: it has no sample(); {remedy}, or what implements r3agent.Policy"
        )
    if fault := _misfit(sample, [], n=1, tools=(), sampling=None):
        raise ConfigError(
            f"policy = {shorten(policy)}: its sample() does not fit: {fault}; write async def sample(self, "
            "messages, *, n=1, tools=(), sampling=None), as in r3agent.Policy"
        )


def check_verifier(verifier: object) -> None:
    """Check that `verifier` can be called with a task and an answer.

    Raises:
        ConfigError: it is a class, cannot be called, or takes other arguments.
    """
    if isinstance(verifier, type):
        raise ConfigError(f"verifier = {verifier.__name__}: a class; pass a function or an instance of a class")
    if not callable(verifier):
        name = repr(verifier) if isinstance(verifier, str) else "name"
        raise ConfigError(
            f"verifier = {shorten(verifier)}: it is no callable (task, answer) -> bool; pass your own, "
            f"or r3agent.verifiers.find_verifier({name})"
        )
    arguments = (None, "", None) if takes_environment(verifier) else (None, "")
    if fault := _misfit(verifier, *arguments):
        raise ConfigError(
            f"verifier = {shorten(verifier)}: it does not take (task, answer): {fault}; write def check(task, answer)"
        )


def check_environment(environment: object) -> None:
    """Check that `environment` is a factory of worlds, or none.

    Raises:
        ConfigError: it cannot be called with a task, or is a coroutine, a generator or a context manager itself.
    """
    if environment is None:
        return
    remedy = "pass an async generator function (task) that yields once, decorated with contextlib.asynccontextmanager"
    if hasattr(environment, "__aenter__") and not isinstance(environment, type):
        raise ConfigError(f"environment = {shorten(environment)}: one world, not a factory of worlds; {remedy}")
    if not callable(environment):
        raise ConfigError(f"environment = {shorten(environment)}: no callable (task); {remedy}")
    if inspect.iscoroutinefunction(environment) or inspect.isasyncgenfunction(environment):
        raise ConfigError(f"environment = {shorten(environment)}: it makes no async context manager; {remedy}")
    if fault := _misfit(environment, None):
        raise ConfigError(f"environment = {shorten(environment)}: it does not take (task): {fault}; {remedy}")


async def sampled(policy: Policy, answer: Awaitable[Sequence[Generation]], n: int) -> list[Generation]:
    """Await the result of `policy.sample` and check it.

    Raises:
        ConfigError: it is not awaitable, or not a list of `n` generations.
    """
    name = f"{type(policy).__name__}.sample"
    if not inspect.isawaitable(answer):
        raise ConfigError(f"{name} returned {shorten(answer)}, which cannot be awaited; write async def sample")
    found: Any = await answer
    is_list = isinstance(found, Sequence) and all(isinstance(one, Generation) for one in found)
    if not is_list or len(found) != n:
        raise ConfigError(f"{name} returned {shorten(found)} for n = {n}; return a list of {n} r3agent.Generation")
    return list(found)


def _misfit(function: Any, *args: object, **kwargs: object) -> str:
    """Return why a function cannot be called like this; empty if it can, or if its signature cannot be read."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    except ValueError:
        pass
    return ""
