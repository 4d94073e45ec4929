"""Agent that changes a database, verified by the final state of the database: every try has a fresh one.

A script replaces the model, so that this runs anywhere: its first try pays the refund twice. Set `R3AGENT_BASE_URL` and
`R3AGENT_MODEL` to use your own model.
"""

import json
import os
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from r3agent import Answer, OpenAIPolicy, Task, Trajectory, build_graph
from r3agent.testing import ScriptedEndpoint


@asynccontextmanager
async def shop(task: Task) -> AsyncGenerator[sqlite3.Connection]:
    """Make the database of one try; sync tools run in threads, one after another."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.execute("CREATE TABLE orders (id, price, refunded)")
    database.executemany("INSERT INTO orders VALUES (?, ?, 0)", task.info["orders"])
    yield database
    database.close()


def find_orders(environment: sqlite3.Connection) -> list[tuple[int, int, int]]:
    """List the orders: id, price and the sum that was refunded."""
    return environment.execute("SELECT * FROM orders").fetchall()


def refund(order: int, amount: int, environment: sqlite3.Connection) -> str:
    """Pay a part of the price of an order back.

    Args:
        order: id of the order.
        amount: sum in euros.
    """
    changed = environment.execute("UPDATE orders SET refunded = refunded + ? WHERE id = ?", (amount, order))
    if not changed.rowcount:
        raise LookupError(f"there is no order {order}")
    return "refunded"


def is_refunded_once(task: Task, answer: Answer, environment: sqlite3.Connection) -> bool:
    """Judge the database that the try left, not its words."""
    return find_orders(environment) == [tuple(row) for row in task.info["wanted"]]


def script(body: dict, choice: int) -> object:
    """Look the orders up, refund the second one, and answer; twice, until a reflection."""

    def calling(name: str, *calls: dict) -> dict:
        functions = [{"name": name, "arguments": json.dumps(arguments)} for arguments in calls]
        return {"tool_calls": [{"id": f"{i}", "type": "function", "function": f} for i, f in enumerate(functions)]}

    last = body["messages"][-1]
    if last["role"] == "tool":
        times = 1 if any("reflection" in str(message["content"]) for message in body["messages"]) else 2
        found = "[[" in last["content"]
        return calling("refund", *[{"order": 2, "amount": 30}] * times) if found else "Your money is on its way."
    return "I paid twice: one call is enough." if "Reflect" in last["content"] else calling("find_orders", {})


task = Task(
    id="refund-2",
    messages=({"role": "user", "content": "Order 2 came broken. Please pay its price back."},),
    info={"orders": [[1, 20], [2, 30]], "wanted": [[1, 20, 0], [2, 30, 30]]},
)

with ScriptedEndpoint(script) as endpoint:
    url, model = os.environ.get("R3AGENT_BASE_URL", endpoint.url), os.environ.get("R3AGENT_MODEL", endpoint.model)
    policy = OpenAIPolicy(url, model)
    tools = [find_orders, refund]
    graph = build_graph(policy=policy, verifier=is_refunded_once, tools=tools, environment=shop).compile()
    result = graph.invoke({"task": task.model_dump()})
    policy.close()

for a_try in Trajectory.model_validate(result["trajectory"]).tries:
    print(f"{a_try.label} in {len(a_try.steps)} steps: {'right' if a_try.passed else 'wrong'}")
    for message in a_try.messages:
        for call in message.get("tool_calls", ()):
            print("    calls", call["function"]["name"], call["function"]["arguments"])
        if message["content"]:
            print(f"    {message['role']}: {message['content']}")
