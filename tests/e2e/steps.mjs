// Countdown by tool calls in plain Node: the task from $R3_TASK_FILE, the model at $OPENAI_BASE_URL, the answer on stdout.
import { readFileSync } from "node:fs";

const { messages, tools } = JSON.parse(readFileSync(process.env.R3_TASK_FILE, "utf8"));
const [, given, target] = messages[0].content.match(/\[(.*?)\], make one number that equals (\d+)/);
let numbers = given.split(", ").map(Number);

function combine({ a, op, b }) {
  const rest = [...numbers];
  for (const number of [a, b]) {
    if (!rest.includes(number)) return `refused: ${number} is not there; left: ${numbers.join(", ")}`;
    rest.splice(rest.indexOf(number), 1);
  }
  if (op === "-" && a <= b) return `refused: ${a} - ${b} is below 1; left: ${numbers.join(", ")}`;
  if (op === "/" && (b === 0 || a % b)) return `refused: ${a} / ${b} is not a whole number; left: ${numbers.join(", ")}`;
  numbers = [{ "+": a + b, "-": a - b, "*": a * b, "/": a / b }[op], ...rest];
  const end = Number(numbers[0]) === Number(target) ? "reached" : "missed";
  return `left: ${numbers.join(", ")}${numbers.length > 1 ? "" : `: the target is ${end}`}`;
}

for (;;) {
  const response = await fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: `Bearer ${process.env.OPENAI_API_KEY}` },
    body: JSON.stringify({ model: process.env.OPENAI_MODEL, messages, tools }),
  });
  if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
  const { message } = (await response.json()).choices[0];
  messages.push(message);
  if (!message.tool_calls?.length) {
    console.log(message.content);
    break;
  }
  for (const call of message.tool_calls) {
    const content = combine(JSON.parse(call.function.arguments));
    messages.push({ role: "tool", tool_call_id: call.id, content });
  }
}
