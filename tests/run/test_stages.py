"""A run directory and its stages, with a server that changes its weights and answers from a script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from r3agent.errors import ConfigError, PolicyError, RecordError, SchemaVersionError
from r3agent.records.trajectory import Task, Trajectory, new_id
from r3agent.run.config import load_config, to_toml
from r3agent.run.loop import run_loop
from r3agent.run.plan import plan_run_training
from r3agent.run.stages import Run
from r3agent.store.lines import encode
from r3agent.store.shards import TrajectoryWriter, read
from r3agent.store.trajectories import load
from r3agent.tasks import find_tasks
from r3agent.tasks.splits import split_of
from r3agent.testing import ScriptedEndpoint
from r3agent.train.lineage import ROWS_FILE
from r3agent.train.rows import why_untrainable
from tests.deploy import endpoint as weights
from tests.deploy.endpoint import serving
from tests.run.test_loop import Told
from tests.support.chatting import ChattingEndpoint, subject

N_TASKS = 8
EXACT = {"eval.n": N_TASKS, "eval.split": "all", "collect.reflections": 2}


class Stopped(Exception):
    """Somebody ended the stage here."""


def reply(body: dict[str, Any]) -> str:
    """The base is never right; v0001 after a reflection, where it samples at temperature 1."""
    said = [m["content"] for m in body["messages"]]
    learnt = body["model"] == "tiny@v0001" and body["temperature"] == 1.0
    return "6" if learnt and "use the tables" in said else "use the tables" if "Reflect" in said[-1] else "5"


@pytest.fixture
def settings(endpoint: ChattingEndpoint, tmp_path: Path) -> dict[str, Any]:
    return {**subject(endpoint, tmp_path, N_TASKS), **EXACT}


@pytest.fixture
def tasks(settings: dict[str, Any]) -> Path:
    return Path(settings["task.source"])


@pytest.fixture
def run(tmp_path: Path, settings: dict[str, Any]) -> Run:
    run = Run(tmp_path / "run", settings)
    run.write_config()
    return run


def with_version(run: Run, kind: str = "lora") -> Run:
    """The run with v0001, whose weights are on disk and recognised by the server."""
    run.ensure_live()
    weights.Run(run.registry, Path(run.config.policy.base_model)).train(kind, seed=1)
    return run


def evaluated(run: Run) -> Run:
    with_version(run).evaluate("v0000", "v0001")
    return run


def reopened(run: Run, **overrides: Any) -> Run:
    return Run(run.directory, {key.replace("__", "."): value for key, value in overrides.items()})


def edit(run: Run, **overrides: Any) -> None:
    """Change r3.toml as a person would."""
    path = run.directory / "r3.toml"
    path.write_text(to_toml(load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})))


def stored(run: Run, version: str | None = None) -> list[Trajectory]:
    return load(run.directory / "trajectories" if version is None else run.directory / "eval" / version)


# ---- what is collected ----


def test_every_trajectory_says_where_it_came_from(run: Run, tasks: Path) -> None:
    run.collect()
    evaluated(run)
    for trajectory in (*stored(run), *stored(run, "v0000"), *stored(run, "v0001")):
        said = {key: trajectory.metadata[key] for key in ("source", "params", "verifier")}
        assert said == {"source": str(tasks), "params": {}, "verifier": "exact"}
        assert trajectory.verifier == "exact"


def test_the_live_version_is_the_one_that_is_sampled(run: Run, endpoint: ChattingEndpoint) -> None:
    run.collect()
    with_version(run).deploy()
    endpoint.adapters.clear()  # it was restarted
    run.collect()
    assert {(s.model, s.policy_version) for t in stored(run) for s in t.spans} == {
        ("tiny", "v0000"),
        ("tiny@v0001", "v0001"),
    }


def test_each_round_draws_new_episodes_and_finds_its_own(run: Run, endpoint: ChattingEndpoint) -> None:
    run = reopened(run, sampling__seed=5)
    first = run.collect()
    seeds = {chat.get("seed") for chat in endpoint.chats}
    with_version(run)  # it does not pass the gate: v0000 samples again, the same tasks
    endpoint.chats.clear()
    second = run.collect()
    assert (second.episodes, second.resumed, len(stored(run))) == (first.episodes, 0, 2 * first.episodes)
    assert {chat.get("seed") for chat in endpoint.chats} & seeds <= {None}
    assert reopened(run, sampling__seed=5).collect().resumed == second.episodes
    more = reopened(run, sampling__seed=5, collect__samples=2).collect()
    assert (more.episodes, more.resumed) == (2 * first.episodes, first.episodes)


def test_tasks_that_always_fail_are_drawn_less_often(run: Run) -> None:
    first = run.collect()  # every try of v0000 fails
    with_version(run)
    thinned = reopened(run, collect__revisit=0.3).collect(version="v0000")
    assert 0 < thinned.episodes < 0.7 * first.episodes
    again = reopened(run, collect__revisit=0.3).collect(version="v0000")
    assert (again.episodes, again.resumed) == (thinned.episodes, thinned.episodes)


def test_a_file_has_the_settings_of_the_first_call_and_later_overrides_are_not_written(run: Run) -> None:
    assert load_config(run.directory / "r3.toml", {}) == run.config
    again = reopened(run, eval__n=3)
    assert again.config.eval.n == 3
    assert reopened(run).config == run.config


def test_a_mistyped_server_or_model_is_not_stored(tmp_path: Path, settings: dict[str, Any]) -> None:
    for key, mistyped in (("policy.base_url", "http://127.0.0.1:9/v1"), ("policy.model", "tinny")):
        with pytest.raises(PolicyError):
            Run(tmp_path / "new", {**settings, key: mistyped}).collect()
        assert not (tmp_path / "new").exists()
    run = Run(tmp_path / "new", settings)
    run.collect()
    assert load_config(run.config_file, {}) == run.config


def test_fewer_tasks_than_asked_for_are_reported(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    reopened(run, collect__n=5000).collect()
    assert f"of 5000 tasks: split train of {run.config.task.source} has no more" in caplog.text


def test_loop_without_gate_tasks_ends_before_its_first_request(
    run: Run, tasks: Path, endpoint: ChattingEndpoint
) -> None:
    tasks.write_text(tasks.read_text().splitlines()[0])
    with pytest.raises(ConfigError, match=r"holds no task in split 'gate', .*; give it more tasks"):
        run_loop(reopened(run, gate__split="gate"), Told())
    assert endpoint.chats == []


@pytest.mark.parametrize("train", [Run.train, plan_run_training])
def test_train_without_episodes_says_so(run: Run, endpoint: ChattingEndpoint, train: Callable[[Run], Any]) -> None:
    with pytest.raises(ConfigError, match="there is no such directory; collect some trajectories first"):
        train(run)
    assert endpoint.chats == []
    assert [path.name for path in run.directory.iterdir()] == ["r3.toml"]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"task.source": "countdown"}, r"task\.source = 'countdown', but .* is a run of '.*tasks\.jsonl'"),
        ({"task.verifier": "countdown"}, r"task\.verifier = 'countdown', but .* is a run of 'exact'"),
        ({"policy.base_model": "bundled"}, r"policy\.base_model = 'bundled', but .* is a run of '.*base'"),
    ],
)
def test_another_task_or_base_model_is_refused(run: Run, overrides: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named + "; choose another directory with --run"):
        Run(run.directory, overrides)


@pytest.mark.parametrize(
    ("mistyped", "says"),
    [({"task.source": "mising.jsonl"}, "there is no such file"), ({"task.verifier": "exat"}, "'exat' is unknown")],
)
def test_a_mistyped_first_command_pins_nothing(
    tmp_path: Path, settings: dict[str, Any], mistyped: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        Run(tmp_path / "run", {**settings, **mistyped})
    assert Run(tmp_path / "run", settings).config.task.source == settings["task.source"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("task__source", "other.jsonl", r"source = 'other\.jsonl', but .*trajectories has episodes of countdown"),
        ("task__verifier", "exact", r"verifier = 'exact', but .*trajectories has episodes of countdown"),
        (
            "task__params",
            {"max_number": 9},
            r"params = \{'max_number': 9\}, but .* has episodes of \{'max_number': 8\}",
        ),
    ],
)
def test_what_was_collected_for_another_task_is_not_trained_on(
    key: str, value: Any, named: str, tmp_path: Path
) -> None:
    pytest.importorskip("trl", reason="needs the train extra")
    with ScriptedEndpoint("no idea") as endpoint:
        policy = {"policy.base_url": endpoint.url, "policy.model": endpoint.model}
        few = {"task.source": "countdown", "collect.n": 2, "collect.reflections": 1, "task.params": {"max_number": 8}}
        run = Run(tmp_path / "run", {**policy, **few})
        run.collect()
    edit(run, **{key: value})
    with pytest.raises(ConfigError, match=named + r"; put it back in r3\.toml, or collect into another"):
        reopened(run).train()
    assert run.registry.versions() == ["v0000"]


# ---- evaluations ----


def test_two_versions_are_compared_on_the_same_tasks(run: Run, endpoint: ChattingEndpoint) -> None:
    comparison = with_version(run).evaluate("v0000", "v0001")
    assert comparison.after_reflection is not None
    assert (comparison.after_reflection.points, comparison.after_reflection.n_tasks) == (100.0, N_TASKS)
    assert (comparison.only_in_baseline, comparison.only_in_candidate) == ((), ())
    assert run.registry.live == "v0000"  # to evaluate is not to deploy
    asked = len(endpoint.chats)
    assert run.evaluate("v0000", "v0001") == comparison
    assert len(endpoint.chats) == asked


def test_one_version_alone_is_measured_and_its_episodes_serve_the_comparison_later(run: Run) -> None:
    alone = run.measure("v0000")
    assert alone.first_try is not None
    assert (alone.n_tasks, alone.first_try.rate, alone.errors.rate) == (N_TASKS, 0.0, 0.0)
    assert with_version(run).evaluate("v0000", "v0001").baseline == alone


def test_an_evaluation_that_was_stopped_asks_for_what_is_missing(run: Run, endpoint: ChattingEndpoint) -> None:
    with_version(run)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run.evaluate("v0000", "v0001", stop)
    kept = {t.trajectory_id for t in stored(run, "v0000")}
    assert len(kept) >= 3
    assert run.comparison("v0000", "v0001") is None
    comparison = reopened(run).evaluate("v0000", "v0001")
    assert kept <= {t.trajectory_id for t in stored(run, "v0000")}
    assert (len(stored(run, "v0000")), comparison.baseline.n_episodes) == (N_TASKS, N_TASKS)


def restamp(run: Run, version: str, stamp: str, n: int) -> None:
    """Let other weights have answered the first `n` stored episodes."""
    [path] = (run.directory / "eval" / version).glob("*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    old, new = f'"policy_version":"{version}"', f'"policy_version":"{stamp}"'
    others = [encode(Trajectory.of_line(line.replace(old, new).encode())).decode() for line in lines[:n]]
    path.write_text("".join([*others, *lines[n:]]))


def test_episodes_that_other_weights_answered_are_collected_anew(run: Run, endpoint: ChattingEndpoint) -> None:
    found = evaluated(run).comparison("v0000", "v0001")
    restamp(run, "v0001", "v0000", n=3)
    asked = len(endpoint.chats)
    assert reopened(run).evaluate("v0000", "v0001") == found
    assert len(endpoint.chats) == asked + 3 * 4  # with the blind retry, an episode has 4 requests
    assert {t.policy_versions for t in load(run.directory / "eval" / "v0001", version="v0001")} == {("v0001",)}


def test_an_evaluation_that_other_weights_answered_is_refused(run: Run, endpoint: ChattingEndpoint) -> None:
    with_version(run, "full")
    endpoint.names_weights = True
    endpoint.reply = lambda body: setattr(endpoint, "weight_version", "default") or "5"  # the server restarts
    with pytest.raises(RecordError, match=f"{N_TASKS} of {N_TASKS} episodes were not answered by v0000 alone"):
        run.evaluate("v0000", "v0001")


def test_evaluations_under_two_samplings_do_not_mix(run: Run) -> None:
    warm = evaluated(run).comparison("v0000", "v0001")
    colder = reopened(run, sampling__temperature=0.5)
    cold = colder.evaluate("v0000", "v0001")
    assert len(stored(run, "v0001")) == 2 * N_TASKS
    assert warm is not None
    assert warm.candidate.after_reflection is not None
    assert cold.candidate.after_reflection is not None
    assert (warm.candidate.after_reflection.rate, cold.candidate.after_reflection.rate) == (1.0, 0.0)
    assert (warm.candidate.n_episodes, cold.candidate.n_episodes) == (N_TASKS, N_TASKS)
    assert reopened(run).evaluate("v0000", "v0001") == warm


def test_evaluations_with_more_blind_retries_do_not_mix(run: Run) -> None:
    plain = evaluated(run).comparison("v0000", "v0001")
    more = reopened(run, eval__blind_retries=3).evaluate("v0000", "v0001")
    assert (plain and plain.baseline.n_episodes, more.baseline.n_episodes) == (N_TASKS, N_TASKS)
    blind = [sum(t.is_blind(span) for span in t.spans) for t in stored(run, "v0000")]
    assert sorted(blind) == [1] * N_TASKS + [3] * N_TASKS
    assert reopened(run).evaluate("v0000", "v0001") == plain


def test_fewer_tasks_and_samples_are_taken_from_what_is_stored(run: Run, endpoint: ChattingEndpoint) -> None:
    evaluated(reopened(run, eval__samples=2))
    asked = len(endpoint.chats)
    fewer = reopened(run, eval__n=3).evaluate("v0000", "v0001")
    assert (fewer.baseline.n_tasks, fewer.baseline.n_episodes, fewer.candidate.n_episodes) == (3, 3, 3)
    assert len(endpoint.chats) == asked


def test_what_is_stored_is_compared_without_a_server(run: Run) -> None:
    compared = evaluated(run).comparison("v0000", "v0001")
    assert reopened(run, policy__base_url="http://127.0.0.1:9/v1").evaluate("v0000", "v0001") == compared


@pytest.mark.parametrize(
    "other",
    [
        {"eval__n": 3},
        {"eval__samples": 2},
        {"eval__blind_retries": 2},
        {"eval__seed": 1},
        {"eval__split": "test"},
        {"sampling__temperature": 0.5},
        {"sampling__max_tokens": 9},
        {"prompts__reflect_prompt": "Reflect!"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_comparison_under_other_settings_is_not_taken_for_this_one(run: Run, other: dict[str, Any]) -> None:
    found = evaluated(run).comparison("v0000", "v0001")
    assert found is not None
    assert reopened(run, **other).comparison("v0000", "v0001") is None
    assert reopened(run, collect__n=1, gate__alpha=0.5).comparison("v0000", "v0001") == found


def test_prompts_that_a_file_leaves_to_its_source_are_the_same_prompts(run: Run) -> None:
    found = evaluated(run).comparison("v0000", "v0001")
    collected = run.collect()
    edit(run, **dict.fromkeys(("prompts__reflect_prompt", "prompts__retry_prompt", "prompts__blind_retry_prompt"), ""))
    assert reopened(run).comparison("v0000", "v0001") == found
    assert reopened(run).collect().resumed == collected.episodes
    edit(run, prompts__retry_prompt="Again: {{ reflection }}")
    assert reopened(run).comparison("v0000", "v0001") is None
    assert reopened(run).collect().resumed == 0


def test_params_that_change_no_task_keep_its_episodes(
    settings: dict[str, Any], tmp_path: Path, endpoint: ChattingEndpoint
) -> None:
    numbers = {**settings, "task.source": "countdown", "task.verifier": "countdown", "eval.split": "test"}
    run = Run(tmp_path / "numbers", numbers)
    run.write_config()
    found = evaluated(run).comparison("v0000", "v0001")
    asked = len(endpoint.chats)
    spelled = reopened(run, task__params__numbers=3)  # the default
    assert spelled.comparison("v0000", "v0001") == found
    assert spelled.evaluate("v0000", "v0001") == found
    assert len(endpoint.chats) == asked
    assert reopened(run, task__params__numbers=4).evaluate("v0000", "v0001").baseline.n_episodes == N_TASKS
    assert len(endpoint.chats) > asked


def test_evaluation_redraws_what_an_older_server_answered(run: Run, endpoint: ChattingEndpoint) -> None:
    with_version(run)
    chat = endpoint.chat

    def refuses(body: dict[str, Any]) -> tuple[int, Any]:
        return (400, {"error": {"message": "unknown field top_k"}}) if "top_k" in body else chat(body)

    endpoint.chat = refuses  # type: ignore[method-assign]
    reopened(run, eval__n=3).measure("v0000")
    endpoint.chat = chat  # type: ignore[method-assign]
    comparison = run.evaluate("v0000", "v0001")
    assert (comparison.baseline.n_episodes, comparison.candidate.n_episodes) == (N_TASKS, N_TASKS)
    sent = Counter(t.spans[0].sampling["top_k"] for t in read(run.directory / "eval" / "v0000"))
    assert sent == {None: 3, -1: N_TASKS}
    asked = len(endpoint.chats)
    assert run.evaluate("v0000", "v0001") == comparison
    assert len(endpoint.chats) == asked


def test_a_comparison_of_an_edited_task_is_not_taken_for_this_one(run: Run) -> None:
    evaluated(run)
    edit(run, task__verifier="countdown")
    assert reopened(run).comparison("v0000", "v0001") is None


def test_a_corrected_gold_answer_is_evaluated_anew(run: Run, endpoint: ChattingEndpoint, tasks: Path) -> None:
    assert evaluated(run).comparison("v0000", "v0001") is not None
    asked = len(endpoint.chats)
    lines = [json.loads(line) for line in tasks.read_text().splitlines()]
    lines[0]["answer"] = "5"  # what the base answers
    tasks.write_text("\n".join(map(json.dumps, lines)))
    again = reopened(run)
    assert again.comparison("v0000", "v0001") is None
    comparison = again.evaluate("v0000", "v0001")
    assert comparison.baseline.n_episodes == N_TASKS
    assert comparison.baseline.first_try is not None
    assert comparison.baseline.first_try.rate == 1 / N_TASKS
    first = {c["messages"][0]["content"] for c in endpoint.chats[asked:]}
    assert first - {"Hello"} == {"0: what is 2 * 3?"}


def test_an_evaluation_keeps_its_errors(run: Run, endpoint: ChattingEndpoint) -> None:
    """Drawing only them again would favour answers that do not fail."""
    evaluated(run)
    [shard] = (run.directory / "eval" / "v0000").glob("*.jsonl")
    first, *others = shard.read_text().splitlines()
    error = {"kind": "EndpointError", "message": "500 no"}
    shard.write_text("\n".join([json.dumps({**json.loads(first), "error": error, "spans": []}), *others, ""]))
    asked = len(endpoint.chats)
    comparison = reopened(run).evaluate("v0000", "v0001")
    assert comparison.baseline.errors_by_kind == {"EndpointError": 1}
    assert len(endpoint.chats) == asked


# ---- what an application recorded ----


def recorded(run: Run, *tasks: dict[str, Any]) -> None:
    with TrajectoryWriter(run.directory / "trajectories", unique=True) as writer:
        for task in tasks:
            writer.append(stored(run)[0].changed(trajectory_id=new_id(), task=Task.of(task), metadata={}))


def test_recorded_tasks_have_the_split_of_their_id(run: Run) -> None:
    run.collect()
    prompts = [{"role": "user", "content": f"question {i}"} for i in range(100)]
    recorded(run, *({"messages": [prompt]} for prompt in prompts))
    found = [t for t in run.trajectories() if t.task.messages[0] in prompts]
    assert {t.metadata["split"]: split_of(t.task.id) for t in found} == {s: s for s in ("train", "gate", "test")}
    assert {t.metadata["split"] for t in run.trajectories() if t not in found} == {"train"}
    why = why_untrainable(
        [t for t in found if t.metadata["split"] != "train"], config=run.config.train, version="v0000"
    )
    assert "held_out" in str(why)


def test_a_recorded_prompt_of_a_frozen_task_is_held_out(run: Run) -> None:
    """The application knows the prompt of the task, but not its id, of which the split is."""
    run.collect()
    frozen = {split: run.draw_tasks(N_TASKS, split=split, seed=0) for split in ("train", "test")}
    recorded(run, *({"messages": task.messages} for tasks in frozen.values() for task in tasks))
    for opened in (run, reopened(run), reopened(run, eval__n=1)):
        by_prompt = {t.task.messages[0]["content"]: t.metadata["split"] for t in opened.trajectories()}
        expected = {task.messages[0]["content"]: split for split, tasks in frozen.items() for task in tasks}
        assert by_prompt == expected
        assert len(set(expected.values())) > 1


def test_a_gate_leaves_out_recorded_tasks_that_were_trained_on(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    endless = {"task.source": "countdown", "task.verifier": "countdown", "eval.split": "test", "collect.n": 2}
    run = Run(tmp_path / "endless", {**settings, **endless, "eval.n": 20, "gate.n": 20})
    run.collect()
    drawn = find_tasks("countdown", 20, seed=run.config.eval.seed * 1000 + 1, split="gate")
    recorded(run, *({"messages": task.messages} for task in drawn))
    train = [t for t in reopened(run).trajectories() if t.metadata.get("split") == "train"][2:]
    [*first, _, _] = train
    assert len(first) > 2
    with_version(run)
    rows = [json.dumps([t.trajectory_id, t.spans[0].span_id, "reflect"]) for t in first]
    (run.registry.version_dir("v0001") / ROWS_FILE).write_text("\n".join(rows))
    gate = run.evaluate("v0000", "v0001", for_gate=True)
    tasks = [t.task for t in load(run.directory / "gate" / "v0001" / "v0001")]
    trained = [t.task.messages for t in first]
    assert {task.id for task in tasks} == {task.id for task in drawn if task.messages not in trained}
    assert caplog.text.count(f"{len(first)} of 20 tasks of split gate left out") == 1
    by_id = {t.trajectory_id: t.metadata["split"] for t in reopened(run).trajectories()}
    assert {by_id[t.trajectory_id] for t in first} == {"train"}
    assert {by_id[t.trajectory_id] for t in train[-2:]} == {"gate"}
    assert reopened(run).comparison("v0000", "v0001", for_gate=True) == gate


def test_a_damaged_comparison_is_named(run: Run) -> None:
    [path] = (evaluated(run).directory / "eval").glob("v0000-v0001.all.*.json")
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(RecordError, match=rf"(?s){path} is not a StoredComparison: .*restore it"):
        run.comparison("v0000", "v0001")
    path.write_text(json.dumps({**json.loads(whole), "schema_version": 2}))
    with pytest.raises(SchemaVersionError, match=rf"{path}: schema_version = 2: this r3agent reads version 1"):
        run.comparison("v0000", "v0001")
    path.write_text(whole)
    assert run.comparison("v0000", "v0001") is not None


def test_full_weights_make_way_for_the_live_ones_when_they_are_evaluated(run: Run, endpoint: ChattingEndpoint) -> None:
    before = endpoint.weights
    evaluated_full = with_version(run, kind="full")
    evaluated_full.evaluate("v0000", "v0001")
    assert endpoint.weights == before
    assert {s.policy_version for t in stored(run, "v0001") for s in t.spans} == {"v0001"}


@pytest.mark.parametrize("live", ["v0000", "v0001"])
def test_the_live_full_weights_are_put_back_after_every_use_of_others(
    live: str, run: Run, endpoint: ChattingEndpoint
) -> None:
    other = {"v0000": "v0001", "v0001": "v0000"}[live]
    with_version(run, kind="full").deploy(live)
    before = endpoint.weights
    assert run.swaps_live
    run.collect(version=other)
    assert {s.policy_version for t in stored(run) for s in t.spans} == {other}
    assert endpoint.weights == before
    run.measure(other)
    assert (endpoint.weights, endpoint.weight_version) == (before, live)


def test_another_server_evaluates_so_that_the_live_one_is_not_touched(
    run: Run, endpoint: ChattingEndpoint, tmp_path: Path
) -> None:
    with_version(run, kind="full")
    asked = len(endpoint.chats)
    with serving(ChattingEndpoint(weights=endpoint.weights, reply=reply)) as other:
        apart = reopened(run, deploy__eval_base_url=other.url)
        apart.evaluate("v0000", "v0001")
        apart.collect(version="v0001")
    assert not apart.swaps_live
    assert {s.policy_version for t in stored(run) for s in t.spans} == {"v0001"}
    assert len(other.chats) > 0
    assert (len(endpoint.chats), "/collective_rpc" in endpoint.calls) == (asked, False)


def test_the_live_weights_are_put_back_when_an_evaluation_is_stopped(run: Run, endpoint: ChattingEndpoint) -> None:
    before = endpoint.weights

    def stop(done: int, total: int) -> None:
        if endpoint.weights != before:
            raise Stopped

    with pytest.raises(Stopped):
        with_version(run, kind="full").evaluate("v0000", "v0001", stop)
    assert endpoint.weights == before


def test_the_live_weights_are_put_back_after_an_evaluation_that_was_killed(
    run: Run, endpoint: ChattingEndpoint, settings: dict[str, Any]
) -> None:
    before = endpoint.weights
    with_version(run, kind="full")
    script = (
        "import os; from r3agent.run.stages import Run\n"
        f"run = Run({str(run.directory)!r}, {settings!r})\n"
        f"at_the_end = lambda done, total: done < total or os._exit(9)\n"
        'run.measure("v0000")\n'
        'run.measure("v0001", at_the_end)\n'
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert (len(stored(run, "v0001")), endpoint.weights == before) == (N_TASKS, False)
    run.evaluate("v0000", "v0001")  # which finds all episodes
    assert endpoint.weights == before
    asked = len(endpoint.calls)
    run.measure("v0001")
    assert len(endpoint.calls) == asked


# ---- what is trained on, what decides, and the final word ----

OWN_SOURCE = """
from r3agent import Task

def source(n, *, seed, split, shared=()):
    first = {"train": 0, "gate": 100, "test": 200}[split]
    for i in [*range(first, first + 6), *(shared if split in ("train", "test") else ())]:
        message = {"role": "user", "content": f"{i}: what is 2 * 3?"}
        yield Task(id=str(i), messages=[message], info={"answer": "6"})
"""


@pytest.fixture
def own_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "drawn_apart.py").write_text(OWN_SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "drawn_apart:source"
    sys.modules.pop("drawn_apart", None)


def test_the_gate_and_the_final_word_are_two_comparisons_of_other_tasks(
    settings: dict[str, Any], own_source: str, tmp_path: Path
) -> None:
    run = with_version(Run(tmp_path / "own", {**settings, "task.source": own_source, "eval.split": "test"}))
    run.collect()
    gate = run.evaluate("v0000", "v0001", for_gate=True)
    final = run.evaluate("v0000", "v0001")
    assert (gate.baseline.n_tasks, final.baseline.n_tasks) == (6, 6)
    assert run.comparison("v0000", "v0001", for_gate=True) == gate
    assert run.comparison("v0000", "v0001") == final
    stores = {"train": "trajectories", "gate": "gate/v0001/v0001", "test": "eval/v0001"}
    drawn = {split: load(run.directory / store) for split, store in stores.items()}
    assert all(t.metadata["split"] == split for split in drawn for t in drawn[split])
    ids = [{t.task.id for t in episodes} for episodes in drawn.values()]
    assert [*map(len, ids)] == [6, 6, 6]
    assert len(set.union(*ids)) == 18


def test_each_gate_draws_its_tasks_and_samples_the_champion_anew(run: Run, endpoint: ChattingEndpoint) -> None:
    many = {"eval__n": 4, "gate__n": 4, "gate__split": "all", "eval__split": "test", "sampling__seed": 5}
    run = with_version(reopened(run, **many))
    weights.Run(run.registry, Path(run.config.policy.base_model)).train("lora", seed=2)
    seen: list[dict[str, set[Any]]] = []
    for version in ("v0001", "v0002"):
        before = len(endpoint.chats)
        assert run.comparison("v0000", version, for_gate=True) is None
        found = run.evaluate("v0000", version, for_gate=True)
        base = load(run.directory / "gate" / version / "v0000")
        sampled = [chat for chat in endpoint.chats[before:] if chat["model"] == "tiny"]
        assert (found.baseline.n_tasks, len(base)) == (4, 4)
        assert len(sampled) >= 4
        seen.append({"tasks": {t.task.id for t in base}, "seeds": {chat["seed"] for chat in sampled}})
        asked = len(endpoint.chats)
        assert reopened(run, **many).evaluate("v0000", version, for_gate=True) == found  # the stored episodes
        assert len(endpoint.chats) == asked
    first, second = seen
    assert first["tasks"] != second["tasks"]
    assert not first["seeds"] & second["seeds"]
    assert not (run.directory / "eval").exists()


def test_a_generated_gate_split_with_few_tasks_is_used_whole(
    settings: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    few = {"task.verifier": "countdown", "task.params": {"numbers": 2, "max_number": 4}, "eval.split": "test"}
    run = with_version(Run(tmp_path / "few", {**settings, "task.source": "countdown", **few, "gate.n": 50}))
    gate = run.evaluate("v0000", "v0001", for_gate=True)
    assert run.comparison("v0000", "v0001", for_gate=True) == gate
    assert gate.baseline.n_tasks == len(find_tasks("countdown", 50, split="gate", seed=3, **run.config.task.params))
    assert caplog.text.count(f"{gate.baseline.n_tasks} of 50 tasks: split gate of countdown has no more") == 1


def test_a_gate_with_a_corrected_gold_answer_is_not_decided(run: Run, tasks: Path) -> None:
    run = with_version(reopened(run, gate__split="all"))
    decided = run.evaluate("v0000", "v0001", for_gate=True)
    assert run.comparison("v0000", "v0001", for_gate=True) == decided
    tasks.write_text(tasks.read_text().replace('"answer": "6"', '"answer": "5"'))
    assert reopened(run, gate__split="all").comparison("v0000", "v0001", for_gate=True) is None
    again = reopened(run, gate__split="all").evaluate("v0000", "v0001")
    assert again.baseline.first_try is not None
    assert again.baseline.first_try.rate == 1.0


@pytest.mark.parametrize("size", [{"eval__n": 6}, {"eval__n": 2}, {"eval__samples": 2}, {"eval__seed": 1}])
def test_gate_decides_once_however_many_are_drawn_later(
    size: dict[str, int], run: Run, endpoint: ChattingEndpoint, tasks: Path
) -> None:
    gate = {"gate__split": "all", "eval__split": "test", "eval__n": 3, "gate__test": "fixed"}
    decided = with_version(reopened(run, **gate)).evaluate("v0000", "v0001", for_gate=True)
    asked = len(endpoint.chats)
    later = reopened(run, **{**gate, **size})
    assert later.comparison("v0000", "v0001", for_gate=True) == decided
    assert later.evaluate("v0000", "v0001", for_gate=True) == decided
    assert len(endpoint.chats) == asked
    colder = reopened(run, **{**gate, **size}, sampling__temperature=0.5)
    assert colder.comparison("v0000", "v0001", for_gate=True) is None
    tasks.write_text(tasks.read_text().replace('"answer": "6"', '"answer": "5"'))
    assert reopened(run, **{**gate, **size}).comparison("v0000", "v0001", for_gate=True) is None


def test_a_gate_on_the_split_of_the_final_evaluation_is_the_final_one(run: Run, endpoint: ChattingEndpoint) -> None:
    run = with_version(reopened(run, gate__split="all"))
    decided = run.evaluate("v0000", "v0001", for_gate=True)
    asked = len(endpoint.chats)
    assert run.evaluate("v0000", "v0001") == decided
    assert len(endpoint.chats) == asked
    assert reopened(run, gate__split="all", eval__n=3).evaluate("v0000", "v0001").baseline.n_tasks == 3


def test_a_smaller_evaluation_keeps_the_larger_one(run: Run, endpoint: ChattingEndpoint) -> None:
    whole = evaluated(run).comparison("v0000", "v0001")
    small = reopened(run, eval__n=3)
    assert small.evaluate("v0000", "v0001").baseline.n_tasks == 3
    assert (run.comparison("v0000", "v0001"), whole and whole.baseline.n_tasks) == (whole, N_TASKS)
    assert small.comparison("v0000", "v0001") is not None


@pytest.mark.parametrize("reopen", [False, True], ids=["in one process", "in the next one"])
def test_a_task_that_was_trained_on_is_not_evaluated(
    reopen: bool, settings: dict[str, Any], own_source: str, tmp_path: Path, endpoint: ChattingEndpoint
) -> None:
    shared = {"task.source": own_source, "task.params": {"shared": [300]}, "eval.split": "test"}
    run = with_version(Run(tmp_path / "own", {**settings, **shared}))
    run.collect()
    asked = len(endpoint.chats)
    with pytest.raises(
        ConfigError, match=r"task '300' was drawn from split 'test', and by this run from 'train' before"
    ):
        (reopened(run) if reopen else run).evaluate("v0000", "v0001")
    assert len(endpoint.chats) == asked


# ---- moved, and kept apart ----


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_directory_that_was_copied_or_moved_is_the_same_run(
    how: Any, run: Run, endpoint: ChattingEndpoint, tmp_path: Path
) -> None:
    run.collect()
    found = evaluated(run).comparison("v0000", "v0001")
    run.deploy("v0001")
    how(run.directory, tmp_path / "elsewhere" / "other")
    endpoint.adapters.clear()  # it looks where the run is, and was restarted
    moved = Run(tmp_path / "elsewhere" / "other")
    assert moved.ensure_live().version == "v0001"
    assert moved.comparison("v0000", "v0001") == found
    summary = moved.collect()
    assert summary.episodes == len(stored(moved)) / 2  # with v0000 before, with v0001 now
    assert moved.rollback().version == "v0000"


def test_a_damaged_live_pointer_is_named(run: Run) -> None:
    run.ensure_live()
    (run.directory / "live.json").write_text("{")
    with pytest.raises(RecordError, match=r"(?s)live\.json is not a LivePointer: .*restore it"):
        reopened(run).collect()


# ---- the key ----


def test_the_key_comes_from_the_variable_that_is_named_and_no_other(
    run: Run, endpoint: ChattingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-for-openai-alone")
    monkeypatch.delenv("MY_KEY", raising=False)
    mine = evaluated(reopened(run, policy__api_key_env="MY_KEY"))
    mine.collect()
    mine.deploy("v0001")
    assert endpoint.keys == {"Bearer EMPTY", None}
    endpoint.keys.clear()
    monkeypatch.setenv("MY_KEY", "sk-mine")
    reopened(mine, policy__api_key_env="MY_KEY", sampling__temperature=0.7).evaluate("v0000", "v0001")
    mine.rollback()
    assert endpoint.keys == {"Bearer sk-mine"}
    files = [path.read_text(errors="replace") for path in run.directory.rglob("*") if path.is_file()]
    assert not [text for text in files if "sk-mine" in text]


def test_the_default_key_is_that_of_openai(
    run: Run, endpoint: ChattingEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-local")
    run.collect()
    assert endpoint.keys == {"Bearer sk-local"}
