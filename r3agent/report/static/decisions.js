"use strict";
// Decisions of the gate: the newest is open.

function decisions(facts) {
  const found = [...facts.decisions].reverse();
  const host = byId("decisions");
  host.replaceChildren();
  if (!found.length) host.append(nothing("The gate has decided on no version yet."));
  found.forEach((decision, i) => host.append(decisionOf(decision, i === 0)));
}

function decisionOf(decision, open) {
  const { version, other, promoted, signs, test } = decision;
  const charts = el("div", { class: "charts" });
  if (test) course(charts, `${version} against ${other}`, test);
  return folded(
    `decision on ${version} of ${decision.at}`,
    open,
    [
      el("span", { class: "chip " + (promoted ? "passed" : "failed") }, promoted ? "promoted" : "refused"),
      ...nodes(` ${version} against ${other} · ${time(decision.at)}, by ${decision.by}`),
    ],
    el("ul", { class: "reasons" }, decision.reasons.map(reason)),
    test ? charts : "",
    signs.map((found) => signOf(`${found.title}: ${version} of ${decision.at}`, found)),
  );
}

function reason(text) {
  const [, met, condition] = /^(met|NOT met): ([^]*)$/.exec(text) || [null, "", text];
  return el("li", {}, met && el("span", { class: "chip " + (met === "met" ? "passed" : "failed") }, met), nodes(` ${condition}`));
}

// The test after each look, if it was sequential.
function course(host, versions, { planned, needed, n_tasks, e_value, points, low, high }) {
  const ticks = n_tasks.map(String);
  chart(host, {
    title: `Evidence for a gain of ${versions}, by tasks of up to ${planned}: e-value, as a power of 10`,
    ticks,
    series: [
      { label: "e-value", values: e_value.map(Math.log10) },
      { label: `needed: ${needed.toPrecision(3)}`, values: ticks.map(() => Math.log10(needed)), plain: true },
    ],
    rows: n_tasks.map((n, i) => [`${n} tasks`, e_value[i].toPrecision(3), needed.toPrecision(3)]),
    min: 0,
  });
  chart(host, {
    title: `Gain of ${versions} after reflection: estimate and 95 % confidence sequence`,
    ticks,
    series: [
      { label: "points", values: points, low, high },
      { label: "no gain", values: ticks.map(() => 0), plain: true },
    ],
    rows: n_tasks.map((n, i) => [`${n} tasks`, `${signed(points[i])} [${signed(low[i])}, ${signed(high[i])}]`, "0"]),
  });
}

function signOf(key, { title, blocked, examples }) {
  const chip = blocked ? el("span", { class: "chip failed" }, "blocked") : el("span", { class: "chip" }, "not blocked");
  return folded(key, blocked, [chip, ...nodes(` ${title}`)], el("ul", { class: "examples" }, examples.map(example)));
}

function example({ trajectory_id, excerpt, listed }) {
  const address = "#trajectory=" + encodeURIComponent(trajectory_id);
  const again = () => location.hash === address && openFromAddress(); // an address that stays is no event
  const name = listed ? el("a", { href: address, on: { click: again } }, nodes(trajectory_id)) : nodes(`${trajectory_id}, not on this page`);
  return el("li", {}, quoted("div", { class: "text" }, excerpt), el("span", { class: "quiet" }, name));
}
