from __future__ import annotations

import pytest

from r3agent.errors import ConfigError
from r3agent.evaluate import compare, evaluate, table, wilson
from r3agent.records.span import OTHER
from r3agent.records.trajectory import EpisodeError
from tests.evaluate.episodes import episode, span


def test_four_cells():
    found = evaluate(
        [
            episode("a", True),
            episode("b", False, reflected=True, blind=False),
            episode("c", False, reflected=True, blind=True),
            episode("d", False, reflected=False, blind=False),
            episode("e", False, error="RequestError"),
        ]
    )
    assert found.first_try is not None
    assert found.after_reflection is not None
    assert found.blind_retry is not None
    assert (found.first_try.rate, found.after_reflection.rate, found.blind_retry.rate) == (0.25, 0.75, 0.5)
    assert (found.first_try.low, found.first_try.high) == pytest.approx(wilson(1, 4))
    assert (found.errors.rate, found.errors_by_kind) == (0.2, {"RequestError": 1})
    assert (found.n_tasks, found.n_episodes, found.policy) == (5, 5, "v0000")
    assert found.lift_over_blind is not None
    assert found.lift_over_blind.points == 25.0


def test_errored_episodes_bound_the_rate_that_leaves_them_out():
    found = evaluate(
        [
            episode("a", True),
            episode("b", False, reflected=True),
            episode("c", False, error="VerifierError"),
            episode("d", False, error="VerifierError"),
            episode("e", True, error="AgentError"),
        ]
    )
    assert found.after_reflection is not None
    assert found.after_reflection.rate == 1.0
    assert found.with_errored is not None
    assert (found.with_errored.failed, found.with_errored.least, found.with_errored.most) == (2, 0.6, 1.0)
    assert "2 errored episodes had failed the first try" in table(found)
    assert "after reflection is 60.0 % to 100.0 %" in table(found)
    assert evaluate([episode("a", True), episode("b", True, error="AgentError")]).with_errored is None


def test_samples_of_a_task_are_averaged():
    found = evaluate([episode("a", True), episode("a", False, sample=1), episode("b", False), episode("b", False)])
    assert found.first_try is not None
    assert (found.first_try.rate, found.first_try.n_tasks, found.n_tasks, found.n_episodes) == (0.25, 2, 2, 4)


def test_several_reflections_are_averaged():
    one = episode("a", False, reflected=True, blind=None)
    attempt = one.spans[0]
    other = span("reflect", attempt, None, "v0000")
    spans = (*one.spans, other, span("retry", other, False, "v0000"))
    found = evaluate([one.model_copy(update={"spans": spans})])
    assert found.after_reflection is not None
    assert found.after_reflection.rate == 0.5


def test_all_errors():
    found = evaluate([episode("a", False, error="VerifierError"), episode("b", True, error="RequestError")])
    assert (found.first_try, found.after_reflection, found.blind_retry, found.lift_over_blind) == (None,) * 4
    assert found.errors.rate == 1.0


def test_attempt_without_a_verdict_is_an_error():
    unverified = episode("a", True)
    attempt = unverified.spans[0].model_copy(update={"verdict": None})
    found = evaluate([unverified.model_copy(update={"spans": (attempt,)}), episode("b", True)])
    assert found.errors_by_kind == {"no verdict": 1}


def test_control_that_was_not_collected_is_no_failure():
    found = evaluate([episode("a", True, blind=None), episode("b", False, reflected=True, blind=None)])
    assert found.blind_retry is None
    assert found.lift_over_blind is None
    assert found.after_reflection is not None
    assert found.after_reflection.rate == 1.0


def test_episodes_of_different_settings_are_refused():
    with pytest.raises(ConfigError, match=r"blind_retry: 1 of 2 episodes, such as .*; evaluate them apart"):
        evaluate([episode("a", False), episode("b", False, blind=None)])


def test_nothing_to_evaluate():
    with pytest.raises(ConfigError, match="no episodes"):
        evaluate([])


def test_tries_that_do_not_ask_the_policy_are_counted_or_refused():
    asked = [episode("a", True), episode("b", False)]
    away = [t.changed(spans=[s.model_copy(update={"purpose": OTHER}) for s in t.spans]) for t in asked]
    assert evaluate(asked).asked is None
    mixed = evaluate([asked[0], away[1]])
    assert (mixed.asked, "1 of 4 tries asked the policy" in table(mixed)) == ((1, 4), True)
    refusal = "0 of 4 tries asked the policy; at least 1 must. Their calls are 4 x another model"
    with pytest.raises(ConfigError, match=refusal):
        compare(asked, away)
    [attempt, reflection, retry, blind] = away[1].spans
    unreflected = retry.model_copy(update={"purpose": None, "finish_reason": "no_reflection"})
    with pytest.raises(ConfigError, match="0 of 3 tries asked the policy"):
        evaluate([away[1].changed(spans=[attempt, reflection, unreflected, blind])])
    failed = EpisodeError(kind="AgentError", message="lost")
    broken = [t.changed(spans=[s.model_copy(update={"error": failed}) for s in t.spans]) for t in away]
    assert evaluate(broken).errors.rate == 1.0
