"""Conversations of the second bundled policy, which plays Countdown by tool calls, and its tokenizer.

A call of the tool in Hermes' form is five tokens: its begin, a number, the operation, a number, its end. The text of a
turn and the JSON in it give the same tokens, so that a conversation's tokens begin with those of its earlier steps.
"""

from __future__ import annotations

import random

from transformers import PreTrainedTokenizerFast

from benchmarks.bundled import tokenizer
from benchmarks.bundled.conversations import assistant
from r3agent.records.trajectory import Message, Task
from r3agent.tasks.countdown import Step, steps
from r3agent.tasks.countdown_steps import called
from r3agent.verifiers.countdown_steps import Board

CALL, CALL_END = '<tool_call>{"name": "combine", "arguments": {"a":', "}}</tool_call>"
OPERATIONS = {op: f', "op": "{op}", "b":' for op in "+-*/"}
SYMBOLS = [CALL, CALL_END, *OPERATIONS.values(), *"+-*/="]
MEANINGS = {CALL: "<answer>", CALL_END: "</answer>", **{text: op for op, text in OPERATIONS.items()}}
"""Tokens of the first policy that mean the same."""
WORDS = [*tokenizer.WORDS, "left", "reached", "missed", "refused", "Done"]

CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
    "{% for message in messages %}<|{{ message.role }}|> {{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}"
    '<tool_call>{"name": "{{ call.function.name }}", "arguments": '
    "{% if call.function.arguments is string %}{{ call.function.arguments }}"
    "{% else %}{{ call.function.arguments | tojson }}{% endif %}}</tool_call>{% endfor %}"
    " <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SHARE_REFUSED = 0.03
"""Share of tries that begin with a move that is not allowed."""

DONE = "Done"


def text_of(message: Message) -> str:
    """Render a turn as the chat template does."""
    calls = [call["function"] for call in message.get("tool_calls") or []]
    texts = [f'<tool_call>{{"name": "{c["name"]}", "arguments": {c["arguments"]}}}</tool_call>' for c in calls]
    return "".join([message["content"] or "", *texts])


def build_tokenizer() -> PreTrainedTokenizerFast:
    return tokenizer.tokenizer_of(SYMBOLS, WORDS, CHAT_TEMPLATE)


def play(task: Task, first: Step, rng: random.Random, *, aim: bool) -> tuple[list[Message], int]:
    """Play a try from a first step on; with `aim` it reaches the target if it can."""
    board = Board(task.info["numbers"], task.info["target"])
    messages: list[Message] = []

    def make(move: Step) -> None:
        result = board.combine(move.left, move.op, move.right)
        messages.extend((called(move), {"role": "tool", "tool_call_id": "move-1", "content": result}))

    if rng.random() < SHARE_REFUSED:
        make(not_allowed(board, rng))
    make(first)
    last_steps = list(steps((first.value, *first.rest)))
    make(rng.choice([s for s in last_steps if aim and s.value == board.target] or last_steps))
    return [*messages, assistant(DONE)], board.numbers[0]


def not_allowed(board: Board, rng: random.Random) -> Step:
    """Draw a move that the board refuses."""
    while True:
        move = Step(rng.choice(board.numbers), rng.choice("+-*/"), rng.randint(1, 15), 0, ())
        if Board(board.numbers, board.target).combine(move.left, move.op, move.right).startswith("refused"):
            return move
