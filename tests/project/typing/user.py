"""A user's application, for the type checker: every public name with a use that has to type-check. It is never run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_type

from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI

from r3agent import (
    AccessError,
    AgentError,
    Answer,
    BusyError,
    CollectSummary,
    ConfigError,
    DeployError,
    EndpointError,
    EpisodeContext,
    Generation,
    Group,
    HubError,
    McpServer,
    OpenAIPolicy,
    Policy,
    PolicyError,
    Prices,
    Program,
    ProtocolError,
    R3Error,
    Recorder,
    RecordError,
    RequestError,
    Sampling,
    SchemaVersionError,
    Span,
    Task,
    TrainingError,
    Trajectory,
    Verdict,
    Verifier,
    VerifierError,
    branch,
    build_graph,
    collect,
    groups,
    instrument,
    label,
    load,
    trace,
    unrecorded,
)
from r3agent.cards import (
    ExportReport,
    HubRepository,
    VersionCheck,
    VersionDiff,
    VersionReport,
    check_version,
    describe,
    diff_versions,
    export_version,
    list_versions,
    model_card,
)
from r3agent.data import (
    Compacted,
    DataStats,
    Exported,
    Imported,
    Lineage,
    Merged,
    Receipt,
    compact,
    export,
    forget,
    import_logs,
    lineage,
    merge,
    stats,
)
from r3agent.deploy import DeployConfig, DeployReport, FingerprintReport, LoadReport, deploy, load_version, rollback
from r3agent.doctor import Check, Diagnosis, diagnose, report
from r3agent.evaluate import (
    CELLS,
    Behaviour,
    Cell,
    Comparison,
    Decision,
    Difference,
    Evaluation,
    Forgetting,
    Length,
    LengthChange,
    PerSuccess,
    PowerPlan,
    Rate,
    compare,
    evaluate,
    finding,
    forgetting,
    gate,
    plan_power,
    power,
    smallest_lift,
    spend_alpha,
    table,
    tasks_needed,
    wilson,
)
from r3agent.report import ReportServer, Written, write_report
from r3agent.serve import Engine, ServerProcess, VLLMProcess, create_app, load_model, serve
from r3agent.store.registry import PolicyCard, Registry
from r3agent.tasks import TaskSource, find_tasks
from r3agent.testing import (
    DROPPED,
    FATAL,
    FAULTS,
    HANG,
    HTML_PAGE,
    MALFORMED_JSON,
    PROMPT_TOO_LONG,
    SERVER_ERROR,
    Call,
    Edit,
    Fault,
    Received,
    ScriptedEndpoint,
    ScriptedPolicy,
    Traffic,
    limited_until,
    miscount,
    random_faults,
    rate_limited,
    traffic_through,
)
from r3agent.train import (
    PolicyStart,
    Row,
    RowReport,
    TrainConfig,
    build_rows,
    credit_spans,
    to_dataset,
    train,
)
from r3agent.verifiers import find_verifier

URL = "http://127.0.0.1:8000/v1"

# ---- tasks and verifiers ----


def source(n: int | None, *, seed: int, split: str) -> Iterator[Task]:
    yield Task(messages=({"role": "user", "content": f"{seed} {split} {n}"},), info={"answer": "42"})


def of_bool(task: Task, answer: Answer) -> bool:
    return answer.strip() == task.info["answer"] and not answer.tool_calls


async def of_verdict(task: Task, answer: Answer) -> Verdict:
    return Verdict(passed=len(answer) > len(task.id), score=0.5, feedback="short")


MINE: TaskSource = source
TASKS: list[Task] = [*find_tasks("countdown", 8, seed=1, split="train"), *MINE(1, seed=0, split="train")]
VERIFIERS: list[Verifier] = [of_bool, of_verdict, lambda task, answer: 0.5, find_verifier("exact")]

# ---- the graph, and a policy of one's own ----


class Constant:
    """Fits the protocol `Policy` without a base class."""

    async def sample(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        n: int = 1,
        tools: Sequence[dict[str, Any]] = (),
        sampling: Sampling | None = None,
    ) -> list[Generation]:
        return [Generation(text="42", model="constant")] * n

    async def aclose(self) -> None: ...


def embed(policy: Policy) -> tuple[str, bool | None]:
    graph = build_graph(policy=policy, verifier=of_bool, max_attempts=3, sampling=Sampling(max_tokens=8)).compile()
    result = graph.invoke({"task": TASKS[0].model_dump(mode="json")}, context=EpisodeContext(max_attempts=2))
    trajectory = Trajectory.model_validate(result["trajectory"])
    assert_type(trajectory.passed, bool | None)
    return result["answer"], result["passed"]


@asynccontextmanager
async def shop(task: Task) -> AsyncGenerator[list[str]]:
    yield list(task.info)


async def sell(item: str, environment: list[str]) -> str:
    """Sell an item."""
    environment.remove(item)
    return "sold"


def is_sold(task: Task, answer: Answer, environment: list[str]) -> bool:
    return not environment


def with_tools(policy: Policy) -> None:
    server = McpServer("python", ["server.py"], env={"PATH": "/bin"})
    graph = build_graph(
        policy=policy, verifier=is_sold, tools=[sell, server], environment=shop, max_steps=4, tool_timeout_s=5.0
    )
    graph.compile()


def of_world(task: Task, answer: Answer, environment: list[str]) -> bool:
    return environment == task.info["words"]


@asynccontextmanager
async def words(task: Task) -> AsyncGenerator[list[str]]:
    yield []


async def ask(messages: list[Any], client: AsyncOpenAI) -> str | None:
    answer = await client.chat.completions.create(model="policy", messages=messages)
    return answer.choices[0].message.content


def wrap(policy: Policy) -> None:
    build_graph(policy=policy, verifier=of_bool, agent=ask, max_steps=4, try_timeout_s=60.0)
    build_graph(policy=policy, verifier=of_world, environment=words, agent=Program("node agent.js", memory_mb=512))


POLICIES: list[Policy] = [Constant(), OpenAIPolicy(URL, "m@live", registry="runs/mine"), ScriptedPolicy("42")]

# ---- collecting and reading ----


async def gather(out: Path) -> CollectSummary:
    prices = Prices(prompt=0.15, cached=0.075, sampled=0.6)
    async with OpenAIPolicy(URL, "my-model", sampling=Sampling(temperature=0.7), prices=prices) as policy:
        return await collect(TASKS, policy=policy, verifier=of_verdict, out=out, reflections=4, blind_retries=1)


def examine_store(directory: Path) -> float:
    found: DataStats = stats(directory)
    return found.pass_rates["first_try"].low


async def learn_from(recorded: Path, out: Path) -> int:
    async with OpenAIPolicy(URL, "my-model") as policy:
        report = await branch(load(recorded), policy=policy, verifier=of_verdict, out=out, since="7d", reflections=8)
    return report.branches


def hand_over(run: Path, out: Path) -> int:
    report: Exported = export(load(run), out, to="trl", type="preference")
    return report.rows


def take_over(run: Path) -> int:
    report: Imported = import_logs(["logs.jsonl"], run, outcome="helpful", pass_at=0.5)
    return report.episodes


def tidy(one: Path, two: Path, out: Path) -> tuple[int, int]:
    merged: Merged = merge([one, two], out)
    compacted: Compacted = compact(out)
    return merged.copies, compacted.bytes_after


def leave(run: Path) -> tuple[str, ...]:
    receipt: Receipt = forget(run, where="user=anna")
    found: Lineage = lineage(run, "v0001", by="user")
    return *receipt.episodes, *found.forgotten


def audit(run: Path) -> bool:
    reports: list[VersionReport] = [*list_versions(run), describe(run, "v0001")]
    diff: VersionDiff = diff_versions(run, "v0001", reports[0].version)
    check: VersionCheck = check_version(run, "v0001")
    return check.ok and "parent" in diff.changed


def publish(run: Path) -> str:
    repository = HubRepository("someone/mine", public=False, update=True)
    exported: ExportReport = export_version(run, "v0001", "merged", merged=True)
    print(model_card(describe(run, "v0001")), *exported.warnings)
    return repository.upload(exported.path, "v0001")


def best(directory: Path) -> dict[str, Span]:
    found: dict[str, Span] = {}
    group: Group
    for group in groups(load(directory), "reflect", "lift"):
        reward, span = max(zip(group.rewards_G, group.spans_G, strict=True), key=lambda pair: pair[0])
        if group.has_variance and reward > 0:
            found[group.group_id] = span
    return found


# ---- an application in production ----


async def answer(client: AsyncOpenAI, question: str, recorder: Recorder) -> str | None:
    recorded = instrument(client)
    with trace(TASKS[0], recorder=recorder) as episode:
        reply = await recorded.chat.completions.create(
            model="my-model", messages=[{"role": "user", "content": question}]
        )
        with episode.span("reflect"):
            await recorded.chat.completions.create(model="my-model", messages=[{"role": "user", "content": "Why?"}])
    return reply.choices[0].message.content


def answer_with_langchain(model: ChatOpenAI, router: ChatOpenAI, run: Path) -> object:
    recorded = assert_type(instrument(model, registry=run), ChatOpenAI)
    with trace(out=run) as episode:
        instrument(router, purpose="router").invoke("Which tool?")
        reply = recorded.invoke("How?")
        with episode.aside("summariser"), unrecorded():
            recorded.invoke("In short?")
        episode.verdict(score=0.5, feedback="half")
    return reply.content


def learn_later(directory: Path, trajectory: Trajectory) -> None:
    with Recorder(directory, sample_rate=0.1, redact=lambda text: text.replace("Ada", "X")) as recorder:
        recorder.record(trajectory)
    print(label(directory, trajectory, passed=True, feedback="it was right").trajectory_id)
    with trace(resume=trajectory, out=directory) as episode:
        episode.verdict(passed=False)


# ---- training, deploying, evaluating ----


def rows_of(directory: Path) -> tuple[list[Row], RowReport]:
    config = TrainConfig(credit={"reflect": "lift", "retry": "success"}, distill=0.5)
    credited = credit_spans(load(directory), config=config, version="v0000")
    print({drop.reason for drop in credited.dropped}, to_dataset(credited.rows).num_rows)
    return build_rows(load(directory), config=config, version="v0000")


def make(run: Path) -> PolicyCard:
    start = PolicyStart(version="v0000", name="bundled", model="bundled")
    return train(load(run), start=start, version="v0001", out_dir=run / "v0001", config=TrainConfig(), resume=True)


def bring(run: Path) -> DeployReport:
    registry, config = Registry(run), DeployConfig(keep=3)
    loaded: LoadReport = load_version("v0001", registry=registry, base_url=URL, config=config)
    fingerprint: FingerprintReport | None = loaded.fingerprint
    if fingerprint is not None and fingerprint.verdict == "arrived":
        return deploy("v0001", registry=registry, base_url=URL, config=config)
    return rollback(registry=registry, base_url=URL, to="v0000")


def judge(before: Path, after: Path) -> Decision:
    alone: Evaluation = evaluate(load(before), prices=Prices(prompt=1, sampled=2))
    seen: Behaviour = alone.behaviour or Behaviour()
    length: Length | None = seen.reflection_length
    spent: PerSuccess | None = seen.per_success.get("after_reflection")
    kept: Forgetting = forgetting("gsm8k", load(before), load(after), budget=2.0)
    rates: dict[Cell, Rate | None] = {cell: getattr(alone, cell) for cell in CELLS}
    comparison: Comparison = compare(load(before), load(after))
    change: Difference | None = comparison.after_reflection
    longer: LengthChange | None = comparison.reflection_length
    plan: PowerPlan = plan_power(500, lift=5, known=change, measured_on="v0000-v0001")
    print(length, spent, kept.within, longer, finding(comparison), plan)
    print(power(plan.n_tasks, 5, 0.2), tasks_needed(5, 0.2), smallest_lift(500, 0.2))
    print(table(comparison), wilson(3, 4), rates, change and change.points)
    return gate(comparison, min_lift=1, max_regression=2, alpha=spend_alpha(0.05, [True, False]))


# ---- servers ----


def serve_here(model: str) -> object:
    return create_app(Engine(load_model(model), max_batch=8), api_key="secret")


def serve_apart() -> list[str]:
    with ServerProcess("bundled") as small, VLLMProcess("my-model", options=["--max-num-seqs", "64"]) as real:
        return [small.base_url, real.base_url]


def serve_until_stopped() -> None:
    serve("bundled", port=0)


async def examine() -> tuple[Check, ...]:
    diagnosis: Diagnosis = await diagnose(URL)
    print(report(diagnosis), diagnosis.tier)
    return diagnosis.checks


# ---- testing ----

SOME: list[Fault | None] = [DROPPED, HANG, HTML_PAGE, MALFORMED_JSON, PROMPT_TOO_LONG, SERVER_ERROR, rate_limited(0.1)]
LIMITED: Fault = limited_until("1s", "6m0s", style="openai")
DRAWN: Iterator[Fault | None] = random_faults(0.1, seed=1, kinds=FAULTS.keys() - FATAL)
EDIT: Edit = miscount


def test_application() -> None:
    scripted = ScriptedPolicy({"attempt": ["41", "40"], "reflect": "Look again.", "retry": lambda messages: "42"})
    assert embed(scripted) == ("42", True)
    calls: list[Call] = scripted.calls
    assert [call.asked for call in calls] == ["attempt", "reflect", "retry"]


async def test_through_a_change() -> None:
    with ScriptedEndpoint("42", faults=[*SOME, next(DRAWN)], edits=[EDIT]) as endpoint:
        policy = OpenAIPolicy(endpoint.url, "scripted")

        def ask(number: int) -> Awaitable[list[Generation]]:
            return policy.sample([{"role": "user", "content": str(number)}])

        traffic: Traffic[list[Generation]] = await traffic_through(lambda: None, ask, clients=2)
        received: list[Received] = endpoint.received
        assert len(traffic.answers) <= len(received)


# ---- report ----


def page_of(run: Path) -> Path:
    with ReportServer(run, port=0) as server:
        print(server.url)
    written: Written = write_report(run, run / "report.html", limit=1000)
    return written.path


# ---- errors ----


def blame(error: R3Error) -> str:
    match error:
        case ConfigError() | BusyError():
            return "the caller"
        case SchemaVersionError() | RecordError():
            return "a file"
        case AccessError() | RequestError():
            return "the request"
        case EndpointError() | ProtocolError() | PolicyError():
            return "the server"
        case VerifierError():
            return "the verifier"
        case AgentError():
            return "the agent"
        case TrainingError() | DeployError() | HubError():
            return "the run"
        case _:
            return f"exit code {error.exit_code}"


if __name__ == "__main__":
    try:
        print(asyncio.run(gather(Path("episodes"))).first_try, best(Path("episodes")))
    except R3Error as error:
        print(blame(error))
