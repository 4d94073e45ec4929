"""Countdown by tool calls, as a program of its own: it knows an OpenAI-compatible address and nothing of r3agent."""

import json
import os
import urllib.request
from pathlib import Path

task = json.loads(Path(os.environ["R3_TASK_FILE"]).read_text())
messages, tools = task["messages"], task["tools"]
numbers = json.loads("[" + task["messages"][0]["content"].partition("[")[2].partition("]")[0] + "]")


def ask() -> dict:
    body = json.dumps({"model": os.environ["OPENAI_MODEL"], "messages": messages, "tools": tools}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["choices"][0]["message"]


def combine(a: int, op: str, b: int) -> str:
    results = {"+": a + b, "*": a * b, "-": a - b, "/": a // b if b and a % b == 0 else -1}
    rest = [*numbers]
    if a not in rest or b not in rest or (a == b and rest.count(a) < 2) or results.get(op, -1) < 1:
        return "refused"
    rest.remove(a)
    rest.remove(b)
    numbers[:] = [results[op], *rest]
    return f"left: {', '.join(map(str, numbers))}"


while (message := ask()).get("tool_calls"):
    results = []
    for call in message["tool_calls"]:
        result = combine(**json.loads(call["function"]["arguments"]))
        results.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    messages += [message, *results]
    if len(numbers) == 1:
        break
print(numbers[0] if len(numbers) == 1 else message.get("content"))
