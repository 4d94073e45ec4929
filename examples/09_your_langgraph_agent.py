"""LangGraph agent of your own, with reflections and retries around it. Needs `r3agent[serve]` and langchain.

The agent plays Countdown by calling a tool, with the bundled policy of that game as its model. Its own code knows
nothing of r3agent, but for `instrument`, which records the calls of its model with their exact tokens.
"""

from langchain.agents import create_agent
from langchain.tools import ToolRuntime, tool
from langchain_openai import ChatOpenAI

from r3agent import OpenAIPolicy, Sampling, Trajectory, build_graph, instrument
from r3agent.serve import ServerProcess
from r3agent.tasks.countdown_steps import board, generate
from r3agent.verifiers import find_verifier


@tool
def combine(a: int, op: str, b: int, runtime: ToolRuntime) -> str:
    """Replace two of the numbers by the result of an operation on them, a whole number."""
    return runtime.config["configurable"]["environment"].combine(a, op, b)


with ServerProcess("bundled-steps") as server:
    model = ChatOpenAI(model="bundled-steps", base_url=server.base_url, api_key="EMPTY")
    agent = create_agent(instrument(model), [combine])

    policy = OpenAIPolicy(server.base_url, "bundled-steps", sampling=Sampling(max_tokens=24))
    verifier = find_verifier("countdown_steps")
    graph = build_graph(policy=policy, verifier=verifier, agent=agent, environment=board, max_steps=4).compile()
    for task in generate(4, seed=0, split="test"):
        trajectory = Trajectory.model_validate(graph.invoke({"task": task.model_dump()})["trajectory"])
        print(f"\n{task.messages[-1]['content'].partition('.')[0]}")
        for span in trajectory.spans:
            moves = ", ".join(call["function"]["arguments"] for call in span.tool_calls)
            verdict = "" if span.verdict is None else " right" if span.verdict.passed else " wrong"
            print(f"{span.label:8} {span.capability}: {moves or span.text}{verdict}")
    policy.close()
