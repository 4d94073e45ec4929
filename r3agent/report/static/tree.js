"use strict";
// One trajectory as a tree of spans.

const MANY_TOKENS = 6000; // tokens of a trajectory, from which they are shown span by span, on demand
const SURENESS = [0.9, 0.6, 0.3, 0.1]; // probabilities that divide the shades of tokens

let tokenLists = 0;

// `send(span, passed, feedback)` attaches a label; without it there are no buttons.
function tree(trajectory, send) {
  const spans = trajectory.spans || [];
  const children = new Map();
  spans.forEach((span, i) => {
    const up = span.up ?? 0;
    if (!children.has(up)) children.set(up, []);
    children.get(up).push(i);
  });
  const many = spans.reduce((sum, span) => sum + (span.tokens || []).length, 0) > MANY_TOKENS;
  // The steps of a try stay beside its first, so that a long try is no deep tree.
  const branch = (found) => {
    const items = [];
    for (const rest = [...found]; rest.length; ) {
      const i = rest.shift();
      const below = children.get(i) || [];
      rest.unshift(...below.filter((child) => spans[child].step));
      items.push(el("li", {}, spanOf(spans[i], many, send), branch(below.filter((child) => !spans[child].step))));
    }
    return items.length ? el("ol", { class: "spans" }, items) : "";
  };
  return el(
    "div",
    { class: "tree" },
    el("div", { class: "prompt" }, (trajectory.messages || []).map(message)),
    trajectory.tools ? el("p", { class: "quiet" }, nodes("tools: " + trajectory.tools.join(", "))) : "",
    trajectory.error ? quoted("p", { class: "note" }, `${trajectory.error.kind}: ${trajectory.error.message || ""}`) : "",
    branch(children.get(-1) || []),
    trajectory.gold ? el("details", {}, el("summary", {}, "An answer that passes"), message(trajectory.gold)) : "",
    el("details", {}, el("summary", {}, "Record"), quoted("pre", { tabindex: "0" }, JSON.stringify(facts(trajectory), null, 1))),
  );
}

const facts = ({ id, parent, task, sample, at, verifier, metadata }) => ({ id, parent, task, sample, at, verifier, metadata });

function message(m) {
  const content = typeof m.content === "string" ? m.content : m.content ? JSON.stringify(m.content) : "";
  const calls = m.tool_calls ? [calling(m.tool_calls)] : [];
  return el("div", { class: "message" }, el("span", { class: "role" }, nodes(m.role || "")), quoted("div", { class: "text" }, content), calls);
}

function spanOf(span, many, send) {
  const verdict = span.verdict;
  const state = verdict ? (verdict.passed ? "passed" : "failed") : null;
  const chips = [
    el("span", { class: "chip label" }, words(span.label) + (span.step ? ", further step" : "")),
    state && el("span", { class: "chip " + state }, state + (verdict.by ? ", by " : ""), verdict.by ? nodes(verdict.by) : ""),
    verdict && verdict.overruled !== undefined && el("span", { class: "chip" }, `the verifier said ${verdict.overruled ? "passed" : "failed"}`),
    verdict && verdict.noisy && el("span", { class: "chip" }, "noisy verdict"),
    span.error && el("span", { class: "chip failed" }, nodes(span.error.kind)),
    span.unfinished && el("span", { class: "chip failed" }, nodes(words(span.unfinished))),
    span.reward !== undefined && el("span", { class: "chip " + sign(span.advantage) }, `reward ${span.reward.toFixed(2)}` + (span.of > 1 && span.advantage !== undefined ? `, advantage ${signed(span.advantage, 2)} of ${span.of}` : "")),
    span.trained && el("span", { class: "chip" }, nodes("trained " + span.trained.join(", "))),
  ];
  const [prompt, sampled] = span.counts || [];
  const meta = [span.version, span.purpose, span.capability, sampled && `${number(prompt)} + ${number(sampled)} tokens`, span.seconds && `${span.seconds.toFixed(2)} s`];
  return el(
    "article",
    { class: "span " + span.label, "aria-label": plain(`${words(span.label)} ${state || ""}`) },
    el("div", { class: "chips" }, chips.filter(Boolean), el("span", { class: "quiet" }, nodes(meta.filter(Boolean).join(" · ")))),
    span.request ? el("details", {}, el("summary", {}, `Request: ${span.request.length} message${span.request.length > 1 ? "s" : ""}`), span.request.map(message)) : "",
    span.reasoning ? el("details", {}, el("summary", {}, "Thinking"), quoted("div", { class: "text" }, span.reasoning)) : "",
    answer(span, many),
    span.calls ? calling(span.calls) : "",
    span.answer !== undefined ? el("div", { class: "message" }, el("span", { class: "role" }, "answer"), quoted("div", { class: "text" }, span.answer)) : "",
    verdict && verdict.feedback ? quoted("p", { class: "quiet" }, verdict.feedback) : "",
    span.error ? quoted("p", { class: "note" }, span.error.message || "") : "",
    span.note ? quoted("p", { class: "quiet" }, span.note) : "",
    send && span.last ? labelling(span, send) : "",
  );
}

const sign = (value) => (value > 0 ? "passed" : value < 0 ? "failed" : "");

function calling(calls) {
  const one = (call) => {
    const f = call.function || call.custom || call;
    const given = f.arguments ?? f.input ?? "";
    return el("li", {}, el("code", {}, nodes(String(f.name ?? call.type ?? "call"))), quoted("pre", { tabindex: "0" }, typeof given === "string" ? given : JSON.stringify(given)));
  };
  return el("ul", { class: "calls", "aria-label": "Tool calls" }, calls.map(one));
}

function answer(span, many) {
  const whole = quoted("div", { class: "text" }, span.text || "");
  if (!span.tokens) return whole;
  const ids = span.tokens.every((token) => /^\d+ $/.test(token));
  if (!many && !ids) return tokens(span);
  const button = el("button", { type: "button", class: "small" }, `Show ${number(span.tokens.length)} tokens`);
  button.addEventListener("click", () => {
    const list = tokens(span);
    button.replaceWith(list);
    list.focus();
  });
  return el("div", {}, whole, button);
}

// The tokens of a span: one stop of the tab key, in which the arrow keys move.
function tokens(span) {
  const name = `tokens-${++tokenLists}`;
  const items = span.tokens.map((token, i) => {
    const logprob = span.logprobs ? span.logprobs[i] : null;
    const shade = logprob === null ? "" : " s" + SURENESS.filter((p) => Math.exp(logprob) < p).length;
    return el("span", { role: "option", id: `${name}-${i}`, class: "token" + shade, "aria-selected": "false", "aria-label": about(span, i) }, nodes(token));
  });
  const list = el("div", { class: "text tokens", tabindex: "0", role: "listbox", dir: "auto", "aria-label": `Tokens of the ${words(span.label)}` }, items);
  let current = -1;
  const go = (to) => {
    if (items[current]) items[current].setAttribute("aria-selected", "false");
    current = Math.max(0, Math.min(items.length - 1, to));
    items[current].setAttribute("aria-selected", "true");
    list.setAttribute("aria-activedescendant", items[current].id);
    tip(items[current], about(span, current));
  };
  const keys = { ArrowRight: () => current + 1, ArrowLeft: () => current - 1, ArrowDown: () => current + 10, ArrowUp: () => current - 10, Home: () => 0, End: () => items.length - 1 };
  list.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hideTip();
    if (!keys[event.key] || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    go(keys[event.key]());
  });
  list.addEventListener("focus", () => list.matches(":focus-visible") && go(current));
  list.addEventListener("blur", hideTip);
  list.addEventListener("mouseleave", hideTip);
  list.addEventListener("mouseover", (event) => {
    const i = items.indexOf(event.target.closest(".token"));
    if (i >= 0) tip(items[i], about(span, i));
  });
  return list;
}

function about(span, i) {
  const logprob = span.logprobs ? span.logprobs[i] : null;
  const parts = [`“${plain(span.tokens[i]).replace("\n", "⏎")}”`];
  parts.push(logprob === null || logprob === undefined ? "no logprob" : `logprob ${logprob.toFixed(3)} (${percent(Math.exp(logprob))})`);
  if (span.reward !== undefined) parts.push(`reward ${span.reward.toFixed(2)}`);
  if (span.advantage !== undefined) parts.push(`advantage ${signed(span.advantage, 2)}`);
  return parts.join(", ");
}

function tip(token, text) {
  const box = byId("tip");
  box.replaceChildren(...nodes(text));
  box.hidden = false;
  const at = token.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - box.offsetWidth - 8);
  box.style.left = `${Math.max(8, left) + scrollX}px`;
  box.style.top = `${at.bottom + 6 + scrollY}px`;
}

function hideTip() {
  byId("tip").hidden = true;
}

function labelling(span, send) {
  const reason = el("input", { type: "text", "aria-label": "Reason of the label", placeholder: "reason", maxlength: "2000" });
  const status = el("span", { role: "status", class: "quiet" });
  const press = async (passed) => {
    status.replaceChildren("…");
    try {
      const made = await send(span, passed, reason.value);
      status.replaceChildren(...nodes(`${passed ? "passed" : "failed"}, says ${made.by}`));
    } catch (error) {
      status.replaceChildren(...nodes(`not labelled: ${error.message}`));
    }
  };
  const button = (text, passed) => el("button", { type: "button", class: "small " + text.toLowerCase(), on: { click: () => press(passed) } }, text);
  return el("div", { class: "labelling", role: "group", "aria-label": "Label this answer" }, button("Passed", true), button("Failed", false), reason, status);
}
