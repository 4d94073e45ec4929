"""`instrument` of LangChain's models: the calls of an agent are recorded with their exact tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from langchain.agents import create_agent
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.outputs import LLMResult
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from pydantic import BaseModel

import r3agent
from r3agent import ConfigError, Trajectory
from r3agent.testing import ScriptedEndpoint
from r3agent.testing.tokens import encode, encode_prompt

CALLS = [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"word":"six"}'}}]


def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word} is 6"


class Number(BaseModel):
    """A number."""

    value: int


def reply(body: dict[str, Any], i: int) -> Any:
    if body.get("response_format"):
        return '{"value": 6}'
    return {"content": "", "tool_calls": CALLS} if body["messages"][-1]["role"] == "user" else "It is 6."


@pytest.fixture
def endpoint() -> Iterator[ScriptedEndpoint]:
    with ScriptedEndpoint(reply) as server:
        yield server


@pytest.fixture
def plain(endpoint: ScriptedEndpoint) -> Iterator[ChatOpenAI]:
    model = ChatOpenAI(base_url=endpoint.url, api_key="sk-hidden", model="scripted", max_retries=0)  # pyright: ignore
    yield model
    model.root_client.close()


def are_exact(tree: Trajectory, endpoint: ScriptedEndpoint) -> bool:
    asked = [received.body["messages"] for received in endpoint.received]
    return [list(s.prompt_token_ids or ()) for s in tree.spans] == [encode_prompt(messages) for messages in asked] and [
        (s.capability, list(s.token_ids or ())) for s in tree.spans
    ] == [("trainable-exact", encode(s.text)) for s in tree.spans]


def test_an_agent_with_an_instrumented_model_is_recorded(plain: ChatOpenAI, endpoint: ScriptedEndpoint) -> None:
    agent: Any = create_agent(r3agent.instrument(plain), tools=[look_up], system_prompt="Be brief.")
    with r3agent.trace() as episode:
        end = agent.invoke({"messages": [("user", "six?")]})
        episode.verdict(passed=True)
    assert end["messages"][-1].content == "It is 6."
    tree = episode.trajectory
    [one] = tree.tries
    assert [step.message.get("tool_calls", []) for step in one.steps] == [CALLS, []]
    assert one.passed
    assert are_exact(tree, endpoint)
    assert tree.task.tools[0]["function"]["name"] == "look_up"
    assert "logprobs" not in str([message.response_metadata for message in end["messages"]]).replace(
        "'logprobs': None", ""
    )
    with r3agent.trace() as untouched:
        plain.invoke("six?")
    assert not untouched.spans


@pytest.mark.parametrize("kind", ["ainvoke", "astream", "tokens"])
async def test_an_agent_is_recorded_however_it_is_run(kind: str, plain: ChatOpenAI, endpoint: ScriptedEndpoint) -> None:
    agent: Any = create_agent(r3agent.instrument(plain), tools=[look_up])
    given = {"messages": [("user", "six?")]}
    async with r3agent.trace() as episode:
        match kind:
            case "ainvoke":
                await agent.ainvoke(given)
            case "astream":
                assert [part async for part in agent.astream(given)]
            case _:
                assert [part async for part in agent.astream(given, stream_mode="messages")]
    assert len(episode.trajectory.tries) == 1
    assert len(episode.spans) == 2
    assert are_exact(episode.trajectory, endpoint)
    await plain.root_async_client.close()


def test_bindings_and_structured_output_of_a_model_are_recorded(plain: ChatOpenAI, endpoint: ScriptedEndpoint) -> None:
    instrumented = r3agent.instrument(plain)
    with r3agent.trace() as episode:
        assert instrumented.with_structured_output(Number).invoke("six?") == Number(value=6)
        instrumented.bind_tools([look_up]).with_config(tags=["x"]).invoke("six?")
        r3agent.instrument(plain.bind_tools([look_up]).with_retry()).invoke("six?")
        assert (
            "".join(str(part.content) for part in instrumented.stream([("user", "?"), ("assistant", "6")]))
            == "It is 6."
        )
    assert [len(received.body.get("tools", ())) for received in endpoint.received] == [0, 1, 1, 0]
    assert [s.capability for s in episode.spans] == ["eval-only", *["trainable-exact"] * 3]
    assert "grammar" in (episode.spans[0].capability_note or "")


def test_callbacks_of_an_instrumented_model_have_the_usage(plain: ChatOpenAI) -> None:
    ends: list[LLMResult] = []

    class Tracer(BaseCallbackHandler):
        def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
            ends.append(response)

    with r3agent.trace() as episode:
        r3agent.instrument(plain).invoke("six?", {"callbacks": [Tracer()]})
    generation: Any = ends[0].generations[0][0]
    [span] = episode.spans
    assert generation.message.usage_metadata["output_tokens"] == span.completion_tokens
    assert generation.message.usage_metadata["input_tokens"] == span.prompt_tokens


def test_other_models_of_the_family_are_copied_too(endpoint: ScriptedEndpoint) -> None:
    class Provider(ChatOpenAI):
        """Model of another vendor."""

    own = openai.OpenAI(base_url=endpoint.url, api_key="x")
    models: list[Any] = [
        Provider(base_url=endpoint.url, api_key="x", model="scripted"),  # pyright: ignore[reportCallIssue, reportArgumentType]
        ChatOpenAI(client=own.chat.completions, api_key="x", model="scripted"),  # pyright: ignore
    ]
    with r3agent.trace() as episode:
        for model in models:
            instrumented = r3agent.instrument(model)
            assert type(instrumented) is type(model)
            instrumented.invoke("six?")
            if instrumented.root_client is not None:
                instrumented.root_client.close()
    own.close()
    assert [s.capability for s in episode.spans] == ["trainable-exact"] * 2
    azure = AzureChatOpenAI(azure_endpoint=endpoint.url, api_key="x", api_version="1", azure_deployment="scripted")  # pyright: ignore
    assert isinstance(r3agent.instrument(azure).root_client, openai.AzureOpenAI)


def test_the_responses_api_of_a_model_is_told(plain: ChatOpenAI, caplog: pytest.LogCaptureFixture) -> None:
    model = r3agent.instrument(plain.model_copy(update={"use_responses_api": True}))
    with r3agent.trace(), pytest.raises(openai.NotFoundError):
        model.invoke("six?")
    assert "use_responses_api=False" in caplog.text


@pytest.mark.parametrize("model", [FakeListChatModel(responses=["6"]), "gpt", object()])
def test_what_is_not_built_on_the_sdk_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"ChatOpenAI\(base_url=...\)"):
        r3agent.instrument(model)
