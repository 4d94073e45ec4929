"""Polling for a condition with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, retry_if_not_result, stop_after_delay, wait_exponential

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T],
    *,
    timeout_s: float,
    poll_s: float = 0.1,
    first_s: float = 0.001,
    retry_on: type[Exception] | tuple[type[Exception], ...] = (),
) -> T:
    """Call `condition`, at least once, until it returns a true value or `timeout_s` has passed.

    The pauses between the calls double from `first_s` up to `poll_s`.

    Args:
        first_s: first pause, in seconds; as long as `poll_s` where a call is expensive.
        retry_on: exceptions of `condition` that mean "not yet"; any other ends the wait.

    Returns:
        The last result: a true value, or the result of the last call before the deadline.

    Raises:
        Exception: as `condition`; one of `retry_on` only after the deadline.
    """
    retrying = Retrying(
        retry=retry_if_not_result(bool) | retry_if_exception_type(retry_on),
        stop=stop_after_delay(timeout_s),
        wait=wait_exponential(multiplier=first_s, max=poll_s),
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )
    return retrying(condition)
