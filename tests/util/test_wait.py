from __future__ import annotations

import pytest

from r3agent._util.wait import wait_until


def test_wait_until_returns_the_first_true_result():
    results = iter([None, 0, "", "here", "later"])
    assert wait_until(lambda: next(results), timeout_s=60, poll_s=0.001) == "here"
    assert next(results) == "later"


def test_wait_until_returns_the_last_result_when_time_is_over():
    results: list[list[int]] = []

    def condition() -> list[int]:
        results.append([])
        return results[-1]

    assert wait_until(condition, timeout_s=0) is results[0]
    assert len(results) == 1
    assert wait_until(condition, timeout_s=0.5, poll_s=0.001) is results[-1]
    assert len(results) > 2


def test_wait_until_makes_its_first_pause_as_long_as_asked():
    calls: list[int] = []
    wait_until(lambda: calls.append(1), timeout_s=0.3, poll_s=0.3, first_s=0.3)
    assert len(calls) <= 2


def test_wait_until_takes_an_error_for_not_yet():
    results = iter([KeyError, KeyError, 7])

    def condition() -> int:
        if (result := next(results)) is KeyError:
            raise KeyError
        return result

    assert wait_until(condition, timeout_s=60, poll_s=0.001, retry_on=KeyError) == 7


@pytest.mark.parametrize("retry_on", [KeyError, (), ValueError])
def test_wait_until_raises_what_its_condition_raised(retry_on):
    def condition() -> bool:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        wait_until(condition, timeout_s=0.01, poll_s=0.001, retry_on=retry_on)


def test_wait_until_lets_an_interrupt_through():
    def condition() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wait_until(condition, timeout_s=60)
