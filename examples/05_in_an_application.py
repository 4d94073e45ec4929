"""Subgraph of a larger LangGraph application: streamed tokens, and a person as the verifier. Needs `r3agent[serve]`.

A customer asks a question. The solver answers and waits until a person has judged the answer. After two rejections the
question goes to a colleague.
"""

from typing import Any, Literal

from langchain_core.messages import AIMessage, HumanMessage, convert_to_openai_messages
from langgraph.checkpoint.memory import InMemorySaver  # a checkpointer on disk lets a killed process resume
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from r3agent import OpenAIPolicy, Sampling, build_graph
from r3agent.serve import ServerProcess
from r3agent.verifiers import find_verifier


def solve(state: MessagesState) -> Command[Literal["send", "colleague"]]:
    output = solver.invoke({"task": {"messages": convert_to_openai_messages(state["messages"])}})
    return Command(goto="send" if output["passed"] else "colleague", update={"messages": [AIMessage(output["answer"])]})


def send(state: MessagesState) -> Any:
    print(f"\nsent: {state['messages'][-1].content}")


def colleague(state: MessagesState) -> Any:
    return {"messages": [AIMessage("A colleague will answer you.")]}


with ServerProcess("bundled") as server:
    policy = OpenAIPolicy(server.base_url, "bundled", sampling=Sampling(max_tokens=24))
    solver = build_graph(policy=policy, verifier=find_verifier("person"), stream=True).compile()

    chat = StateGraph(MessagesState)
    for node in (solve, send, colleague):
        chat.add_node(node)
    chat.add_edge(START, "solve")
    app = chat.compile(checkpointer=InMemorySaver())

    for number, second_opinion in enumerate(({"passed": True}, {"passed": False})):
        thread: Any = {"configurable": {"thread_id": str(number)}}
        question = HumanMessage("Using the numbers [2, 3, 4], create an equation that equals 20.")
        todo: Any = {"messages": [question]}
        for verdict in ({"passed": False, "feedback": "that is not 20"}, second_opinion, None):
            label = ""
            for _, delta in app.stream(todo, thread, stream_mode="custom", subgraphs=True, durability="sync"):
                start = f"\n{delta['label']}: " if delta["label"] != label else ""
                print(start, delta["delta"], sep="", end="", flush=True)
                label = delta["label"]
            todo = Command(resume=verdict)
        print("\n" + app.get_state(thread).values["messages"][-1].content)
