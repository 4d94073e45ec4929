"""Truth that comes later: episodes without a verdict are not trained on, and are once somebody says how they went."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import r3agent
from r3agent import ConfigError, SchemaVersionError, Trajectory, build_graph, groups, load
from r3agent.cli.main import main
from r3agent.data import export, stats
from r3agent.episodes.collect import collect
from r3agent.errors import RecordError, TrainingError, VerifierError
from r3agent.records.branching import branch_of
from r3agent.records.summary import summarise
from r3agent.records.trajectory import Span, Task, Verdict
from r3agent.store.labels import labels_path
from r3agent.store.shards import TrajectoryWriter, read
from r3agent.testing import ScriptedPolicy
from r3agent.train import TrainConfig, build_rows, credit_spans
from r3agent.verifiers import PENDING, find_verifier
from tests.support.trees import span, tree

TASK = {"id": "t", "messages": [{"role": "user", "content": "hi"}], "info": {}}
EXACT: dict[str, Any] = {"prompt_token_ids": (1,), "token_ids": (3,), "logprobs": (-0.5,)}
EXACT |= {"capability": "trainable-exact", "policy_version": "v0000"}


def store(directory: Path, *episodes: Trajectory) -> Path:
    with TrajectoryWriter(directory) as writer:
        for episode in episodes:
            writer.append(episode)
    return directory


def named(name: str, passed: bool | None = None) -> Trajectory:
    return tree(span("attempt", None, passed, span_id=f"a{name}", **EXACT)).model_copy(update={"trajectory_id": name})


# ---- an episode whose truth is not known yet ----


def test_a_pending_try_ends_the_episode_without_a_verdict() -> None:
    policy = ScriptedPolicy("hm")
    graph = build_graph(policy=policy, verifier=find_verifier("later"), max_attempts=3).compile()
    result = graph.invoke({"task": TASK})
    assert (result["answer"], result["passed"]) == ("hm", None)
    [only] = Trajectory.model_validate(result["trajectory"]).spans
    assert (only.label, only.verdict) == ("attempt", None)
    assert len(policy.calls) == 1


def test_a_failed_try_goes_on_and_its_pending_retry_ends_it() -> None:
    def check(task: Task, answer: str) -> Any:
        return False if answer == "first" else PENDING

    policy = ScriptedPolicy({"attempt": "first", "reflect": "so", "retry": "second"})
    result = build_graph(policy=policy, verifier=check, max_attempts=3).compile().invoke({"task": TASK})
    assert (result["answer"], result["passed"]) == ("second", None)
    spans = Trajectory.model_validate(result["trajectory"]).spans
    assert [(s.label, s.passed) for s in spans] == [("attempt", False), ("reflect", None), ("retry", None)]


def test_a_verifier_that_forgot_to_return_is_still_an_error() -> None:
    graph = build_graph(policy=ScriptedPolicy("hm"), verifier=lambda task, answer: None).compile()  # type: ignore
    with pytest.raises(VerifierError, match=r"returned None; return True, False, .* or PENDING"):
        graph.invoke({"task": TASK})


async def test_pending_episodes_are_trained_on_once_labelled(
    tmp_path: Path,
) -> None:
    policy = ScriptedPolicy("hm", model="m@v0000")
    summary = await collect(
        [Task.model_validate(TASK)], policy=policy, verifier=find_verifier("later"), out=tmp_path, samples=4
    )
    assert (summary.episodes, summary.errors, summary.unlabelled, summary.first_try) == (4, {}, 4, None)
    config = TrainConfig(recipe="paper", credit={"attempt": "success"})
    assert list(groups(load(tmp_path), "attempt")) == []
    with pytest.raises(TrainingError, match=r"dropped: unlabelled 4.*attach it with r3agent label"):
        build_rows(load(tmp_path), config=config, version="v0000")

    one, other, *_ = load(tmp_path)
    r3agent.label(tmp_path, one.trajectory_id, passed=True)
    r3agent.label(tmp_path, other.trajectory_id, passed=False)
    rows, report = build_rows(load(tmp_path), config=config, version="v0000")
    assert {(row.trajectory_id, row.reward) for row in rows} == {(one.trajectory_id, 1.0), (other.trajectory_id, 0.0)}
    assert report.dropped == {"unlabelled": 2}
    assert summarise(load(tmp_path)).unlabelled == 2


def test_a_reflection_is_paid_by_labels_of_its_retries(tmp_path: Path) -> None:
    failed = span("attempt", None, False, **EXACT)
    reflections = [span("reflect", failed, **EXACT) for _ in range(3)]
    retries = [span("retry", r, **EXACT) for r in reflections]
    childless = span("reflect", failed, **EXACT)
    episode = tree(failed, *reflections, *retries, childless)
    store(tmp_path, episode)
    for retry, passed in zip(retries[:2], (True, False), strict=True):
        r3agent.label(tmp_path, episode.trajectory_id, span_id=retry.span_id, passed=passed)
    found = credit_spans(load(tmp_path), config=TrainConfig(recipe="paper"), version="v0000")
    assert [(row.span_id, row.reward) for row in found.rows] == [
        (reflections[0].span_id, 1.0),
        (reflections[1].span_id, 0.0),
    ]
    assert [(drop.span_id, drop.reason) for drop in found.dropped] == [
        (reflections[2].span_id, "unlabelled"),
        (childless.span_id, "no_reward"),
    ]


# ---- labels ----


def test_last_label_wins_and_the_verifiers_verdict_is_kept(tmp_path: Path) -> None:
    store(tmp_path, named("one", passed=True), named("two"))
    before = (tmp_path / "00000.jsonl").read_bytes()
    r3agent.label(tmp_path, "one", passed=True, by="ada")
    r3agent.label(tmp_path, "one", passed=False, feedback="sent back", by="bob")
    one, two = load(tmp_path)
    verdict = one.spans[0].verdict
    assert verdict is not None
    assert (verdict.passed, verdict.score, verdict.feedback) == (False, 0.0, "sent back")
    assert (verdict.by, verdict.overruled) == ("bob", True)
    assert one.passed is False
    assert two.passed is None
    assert (tmp_path / "00000.jsonl").read_bytes() == before
    assert [t.passed for t in read(tmp_path)] == [True, None]  # as it was written


def test_label_says_what_it_overrules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    store(run / "trajectories", named("one", passed=True), named("two", passed=False), named("open"))
    assert r3agent.label(run, "two", passed=False).overrules is None
    assert r3agent.label(run, "open", passed=False).overrules is None
    main(["label", str(run), "one", "--failed"])
    assert "overruling the verifier's passed" in capsys.readouterr().out
    [one, *_] = load(run / "trajectories")
    assert r3agent.label(run, one, passed=False).overrules is True  # already labelled: the verifier's own counts
    assert r3agent.label(run, one, passed=True).overrules is None
    assert r3agent.label(run, one, passed=False).overrules is True
    main(["inspect", str(run)])
    shown = capsys.readouterr().out
    assert "verdicts of the verifier overruled by labels: 1, e.g.:\n  one, span aone: failed by" in shown


def test_a_label_that_agrees_overrules_nothing(tmp_path: Path) -> None:
    store(tmp_path, named("one", passed=True))
    r3agent.label(tmp_path, "one", passed=True)
    [one] = load(tmp_path)
    assert one.spans[0].verdict is not None
    assert one.spans[0].verdict.overruled is None
    assert one.spans[0].verdict.by


def test_author_is_the_variable_or_the_user_or_gits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, named("one", passed=True))

    def author(**environment: str) -> str:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return r3agent.label(tmp_path, "one", passed=True).by

    assert author(R3AGENT_AUTHOR=" Anna ", LOGNAME="bert") == "Anna"
    assert author(R3AGENT_AUTHOR="") == "bert"
    git = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "user.name", "GIT_CONFIG_VALUE_0": "Carl"}
    assert author(LOGNAME="root", **git) == ("Carl" if shutil.which("git") else "root")
    assert author(PATH=str(tmp_path)) == "root"  # no git is there


def test_label_counts_in_every_branch_that_has_the_answer(tmp_path: Path) -> None:
    first = tree(span("attempt", None, False, span_id="a"), span("attempt", None, False, span_id="b"))
    edited = [first.spans[0], first.spans[1].model_copy(update={"text": "edited"})]
    branch = first.changed(trajectory_id="branch", parent_id=first.trajectory_id, spans=edited)
    other = first.changed(trajectory_id="other")
    store(tmp_path, first, branch, other)
    r3agent.label(tmp_path, "branch", span_id="a", passed=True)
    r3agent.label(tmp_path, first, span_id="b", passed=True)
    assert [[s.passed for s in t.spans] for t in load(tmp_path)] == [[True, True], [True, False], [False, False]]


def test_reflections_on_what_a_label_calls_right_teach_nothing(tmp_path: Path) -> None:
    failed = span("attempt", None, False, **EXACT)

    def reflected(begin: Trajectory) -> Trajectory:
        reflections = [span("reflect", failed, **EXACT) for _ in range(2)]
        retries = [span("retry", r, p, **EXACT) for r, p in zip(reflections, (True, False), strict=True)]
        return begin.changed(spans=(*begin.spans, *reflections, *retries))

    first = tree(failed)
    store(tmp_path / "s", first, reflected(branch_of(first)), reflected(tree(failed)))
    found = credit_spans(load(tmp_path / "s"), config=TrainConfig(recipe="paper"), version="v0000")
    assert (len(found.rows), found.dropped, stats(tmp_path / "s").groups) == (4, [], 2)
    export(load(tmp_path / "s"), tmp_path / "before", to="art")
    for told in load(tmp_path / "s")[::2]:  # the branch has its answer of the first
        r3agent.label(tmp_path / "s", told.trajectory_id, span_id="attempt", passed=True)
    found = credit_spans(load(tmp_path / "s"), config=TrainConfig(recipe="paper"), version="v0000")
    assert (found.rows, [drop.reason for drop in found.dropped]) == ([], ["after_success"] * 4)
    assert (stats(tmp_path / "s").groups, summarise(load(tmp_path / "s")).groups) == (0, 0)
    with pytest.raises(RecordError, match="0 rows of 3 episodes"):
        export(load(tmp_path / "s"), tmp_path / "after", to="art")
    with pytest.raises(TrainingError, match="0 of 3 first attempts failed"):
        build_rows(load(tmp_path / "s"), config=TrainConfig(recipe="paper"), version="v0000")


def test_a_trajectory_in_hand_is_not_looked_for(tmp_path: Path) -> None:
    episode = named("one")
    r3agent.label(tmp_path, episode, passed=True)  # the recorder may not have written it yet
    store(tmp_path, episode)
    assert load(tmp_path)[0].passed is True


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("abd1", "did you mean .abc1"),
        ("abc", "begins the ids of 2"),
        ("zzz", "not among the 2 .*; r3agent inspect lists them"),
        ('"', "not among"),
        ("", "'': every id begins with that; give an id"),
    ],
)
def test_an_id_that_names_no_one_episode_is_refused(wanted: str, says: str, tmp_path: Path) -> None:
    store(tmp_path, named("abc1"), named("abc2"))
    with pytest.raises(ConfigError, match=says):
        r3agent.label(tmp_path, wanted, passed=True)
    assert not labels_path(tmp_path).exists()


def test_only_tries_have_verdicts(tmp_path: Path) -> None:
    failed = span("attempt", None, False, span_id="try")
    store(tmp_path, tree(failed, span("reflect", failed, span_id="thought")), tree())
    grown, empty = load(tmp_path)
    for wrong in ("thought", "nowhere"):
        with pytest.raises(ConfigError, match=rf"span '{wrong}'.*try \(attempt\)"):
            r3agent.label(tmp_path, grown.trajectory_id, span_id=wrong, passed=True)
    with pytest.raises(ConfigError, match="no try"):
        r3agent.label(tmp_path, empty.trajectory_id, passed=True)


def test_a_torn_label_loses_only_itself(tmp_path: Path) -> None:
    store(tmp_path, named("one"), named("two"))
    r3agent.label(tmp_path, "one", passed=True)
    with labels_path(tmp_path).open("a") as file:
        file.write('{"trajectory_id": "tw')
    r3agent.label(tmp_path, "two", passed=False)
    assert [t.passed for t in load(tmp_path)] == [True, False]


def test_labels_of_another_version_are_refused_with_their_place(tmp_path: Path) -> None:
    store(tmp_path, named("one"))
    r3agent.label(tmp_path, "one", passed=True)
    with labels_path(tmp_path).open("a") as file:
        file.write(json.dumps({"schema_version": 9}) + "\n")
    with pytest.raises(SchemaVersionError, match=r"labels\.jsonl:2: "):
        load(tmp_path)


def test_a_line_that_is_no_label_is_left_out_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path, named("one"))
    r3agent.label(tmp_path, "one", passed=True)
    with labels_path(tmp_path).open("a") as file:
        file.write(json.dumps({"trajectory_id": "one"}) + "\n")
    assert [t.passed for t in load(tmp_path)] == [True]
    assert "labels.jsonl:2: not a label: span_id: Field required" in caplog.text
    assert f"`r3agent data check {tmp_path}`" in caplog.text


LABELLER = "import sys, r3agent\nfor i in range(40): r3agent.label(sys.argv[1], f'{i}', passed=True, by=sys.argv[2])"


def test_processes_label_at_once_without_losing_a_line(tmp_path: Path) -> None:
    store(tmp_path, *(named(str(i)) for i in range(40)))
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    labellers = [
        subprocess.Popen([sys.executable, "-c", LABELLER, str(tmp_path), who], env=env) for who in ("ada", "bob")
    ]
    assert [process.wait() for process in labellers] == [0, 0]
    lines = [json.loads(line) for line in labels_path(tmp_path).read_text().splitlines()]
    assert sorted((line["by"], line["trajectory_id"]) for line in lines) == sorted(
        (who, str(i)) for who in ("ada", "bob") for i in range(40)
    )
    assert all(t.passed for t in load(tmp_path))


# ---- the verb ----


def test_the_verb_labels_by_the_beginning_of_the_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "trajectories", named("3f2a9c0d"), named("4f2a9c0d"))
    assert main(["label", str(tmp_path), "3f2", "--failed", "--feedback", "sent back", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["trajectory_id"], said["span_id"], said["passed"]) == ("3f2a9c0d", "a3f2a9c0d", False)
    assert main(["label", str(tmp_path), "4f2", "--passed", "--span", "a4f2a9c0d"]) == 0
    assert "the first try: span a4f2a9c0d of trajectory 4f2a9c0d passed" in capsys.readouterr().out
    assert [t.passed for t in load(tmp_path / "trajectories")] == [False, True]


def test_the_verb_says_which_retry_of_a_tree_it_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attempt = Span(model="m", span_id="a", label="attempt", text="1", verdict=Verdict(passed=False, score=0.0))
    spans = [attempt]
    for i in range(2):
        spans.append(Span(model="m", span_id=f"r{i}", parent_id="a", label="reflect", text="look again"))
        spans.append(Span(model="m", span_id=f"t{i}", parent_id=f"r{i}", label="retry", text="2"))
    spans.append(Span(model="m", span_id="blind", parent_id="a", label="retry", text="3"))
    store(tmp_path, named("tree").changed(spans=tuple(spans)))
    for flags, place in [
        ([], "retry 3 of 3, without a reflection: span blind"),
        (["--span", "t1"], "retry 2 of 3, after the reflection r1: span t1"),
    ]:
        assert main(["label", str(tmp_path), "tree", "--passed", *flags]) == 0
        assert capsys.readouterr().out.startswith(place)


def test_label_refuses_an_empty_prefix_even_of_one_episode(tmp_path: Path) -> None:
    store(tmp_path / "trajectories", named("one"))
    assert main(["label", str(tmp_path), "", "--passed"]) == 2
    assert load(tmp_path / "trajectories")[0].passed is None


def test_label_takes_a_run_or_its_store_and_so_does_the_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = store(tmp_path / "trajectories", named("one"))
    for directory in (tmp_path, folder):
        r3agent.label(directory, "one", passed=True)
        r3agent.label(directory, named("one"), passed=True)
        assert main(["label", str(directory), "one", "--failed"]) == 0
        assert f"next: r3agent inspect {tmp_path} one" in capsys.readouterr().out
    assert len(labels_path(folder).read_text().splitlines()) == 6
    assert not labels_path(tmp_path).exists()


def test_a_run_without_episodes_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for directory, remedy in ((tmp_path, "collect some"), (tmp_path / "typo", "check the path")):
        assert main(["label", str(directory), "one", "--passed"]) == 2
        said = capsys.readouterr().err
        assert str(directory) in said
        assert remedy in said


@pytest.mark.parametrize("flags", [[], ["--passed", "--failed"]])
def test_the_verb_wants_one_verdict(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", str(tmp_path), "x", *flags]) == 2
    assert "either --passed or --failed" in capsys.readouterr().err


def test_inspect_lists_what_waits_for_a_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store(tmp_path / "trajectories", named("failed", passed=False), named("waiting"))
    assert main(["inspect", str(tmp_path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["failed"], said["unlabelled_ids"]) == (["failed"], ["waiting"])
