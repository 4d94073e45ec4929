"""In a chat application: tokens as they come, and a person who decides. Needs `r3agent[serve]`."""

from typing import Any

from langchain_core.messages import AIMessage, HumanMessage, convert_to_openai_messages
from langgraph.checkpoint.memory import InMemorySaver  # or one on a disk: a killed process is then taken up
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command

from r3agent import OpenAIPolicy, Sampling, build_graph
from r3agent.serve import ServerProcess
from r3agent.verifiers import find_verifier


def solve(state: MessagesState) -> Any:
    output = solver.invoke({"task": {"messages": convert_to_openai_messages(state["messages"])}})
    return {"messages": [AIMessage(output["answer"])]}


with ServerProcess("bundled") as server:
    policy = OpenAIPolicy(server.base_url, "bundled", sampling=Sampling(max_tokens=24))
    solver = build_graph(policy=policy, verifier=find_verifier("person"), stream=True).compile()

    chat = StateGraph(MessagesState)
    chat.add_node("solve", solve)
    chat.add_edge(START, "solve")
    app = chat.compile(checkpointer=InMemorySaver())

    thread: Any = {"configurable": {"thread_id": "1"}}
    question = "Using the numbers [2, 3, 4], create an equation that equals 20."
    todo: Any = {"messages": [HumanMessage(question)]}
    for verdict in ({"passed": False, "feedback": "that is not 20"}, {"passed": True}, None):
        label = ""
        for _, delta in app.stream(todo, thread, stream_mode="custom", subgraphs=True, durability="sync"):
            print(
                f"\n{delta['label']}: " if delta["label"] != label else "", delta["delta"], sep="", end="", flush=True
            )
            label = delta["label"]
        todo = Command(resume=verdict)

print("\n")
for message in app.get_state(thread).values["messages"]:
    print(f"{message.type}: {message.content}")
