"use strict";
// The figures of a run.

const CELL_ORDER = ["first_try", "after_reflection", "blind_retry", "blind_equal_tokens"];
const TRIES = {
  first_try: "first try", after_reflection: "retry after reflection", blind_retry: "blind retry", branch_first_try: "first try of a branch",
  branch_after_reflection: "retry of a branch, after reflection", branch_blind_retry: "blind retry of a branch",
};
const UNKNOWN = "unknown"; // the version of an answer that nobody noted, which is on no line of versions
const METRICS = ["reward", "kl", "entropy", "loss", "grad_norm", "clip_ratio/region_mean", "ratio", "learning_rate"];

function overview(facts) {
  byId("run").replaceChildren(...nodes(facts.run));
  const about = [facts.task && `task ${facts.task}`, facts.verifier && `verifier ${facts.verifier}`, `policy ${facts.model}`];
  about.push(`${number(facts.episodes)} episodes`);
  byId("about").replaceChildren(...nodes(about.filter(Boolean).join(" · ")));
  const headline = byId("headline");
  headline.className = "headline " + plain(facts.headline.kind);
  headline.replaceChildren(...nodes(facts.headline.text));
  byId("detail").replaceChildren(...nodes(facts.headline.detail || ""));
  byId("notes").replaceChildren(...facts.notes.map((note) => quoted("p", { class: "note" }, note)));
  byId("foot").replaceChildren(`Made ${time(facts.made_at)}.`);
  clearCharts();
  cells(facts);
  decisions(facts);
  curves(facts);
  costs(facts);
  failures(facts);
  events(facts);
}

const nothing = (text) => el("p", { class: "quiet" }, text);

function cells(facts) {
  const host = byId("cells");
  host.replaceChildren();
  if (!facts.evaluations.length) host.append(nothing("No version is evaluated yet."));
  for (const kind of ["eval", "gate"]) {
    const found = facts.evaluations.filter((e) => e.kind === kind);
    if (!found.length) continue;
    const names = [...new Set([...CELL_ORDER, ...found.flatMap((e) => Object.keys(e.cells))])];
    const used = names.filter((name) => name !== "errors" && found.some((e) => e.cells[name]));
    const pick = (name, field) => found.map((e) => (e.cells[name] ? 100 * e.cells[name][field] : null));
    chart(host, {
      title: kind === "eval" ? `Final evaluation, ${found[0].split} split` : `Gate, ${found[0].split} split`,
      ticks: found.map((e) => e.policy),
      series: used.map((name) => ({
        label: words(name), values: pick(name, "rate"), low: pick(name, "low"), high: pick(name, "high"), whiskers: true,
      })),
      unit: " %",
      format: (v) => v.toFixed(1) + " %",
      min: 0,
    });
  }
  if (facts.comparisons.length) host.append(el("div", { class: "whole" }, changes(facts.comparisons), behaviour(facts.evaluations)));
}

function changes(comparisons) {
  const rows = comparisons.flatMap((c) =>
    Object.entries(c.changes).map(([name, d]) => [
      `${c.candidate.policy} − ${c.baseline.policy}`,
      `${c.kind}, ${c.split}`,
      words(name),
      `${signed(d.points)} [${signed(d.low)}, ${signed(d.high)}]`,
      d.p_value.toPrecision(2),
      number(d.n_tasks),
    ]),
  );
  const head = ["Versions", "Comparison", "Cell", "Change, points", "p", "Tasks"];
  return folded("changes", true, "Changes on the same tasks", table("Changes", head, rows));
}

function behaviour(evaluations) {
  const names = [...new Set(evaluations.flatMap((e) => Object.keys(e.behaviour)))];
  if (!names.length) return "";
  const rate = (r) => (r ? `${percent(r.rate)} [${percent(r.low)}, ${percent(r.high)}]` : "–");
  const rows = evaluations.map((e) => [
    `${e.policy}, ${e.kind}`, ...names.map((name) => rate(e.behaviour[name])), e.tokens_per_success ? number(Math.round(e.tokens_per_success)) : "–",
  ]);
  const head = ["Version", ...names.map(words), "Tokens per success"];
  return folded("behaviour", true, "Behaviour", table("Behaviour", head, rows));
}

function curves(facts) {
  const host = byId("curves");
  host.replaceChildren();
  const rounds = facts.rounds.filter((r) => r.episodes && r.version !== UNKNOWN);
  const ticks = rounds.map((r) => `${r.round} · ${r.version}`);
  if (rounds.length) {
    const pick = (kind, field) => rounds.map((r) => (r.rates[kind] ? 100 * r.rates[kind][field] : null));
    const kinds = Object.keys(TRIES).filter((kind) => rounds.some((r) => r.rates[kind]));
    if (kinds.length) {
      chart(host, {
        title: "Tries that passed, mean over tasks, by round of collection",
        ticks,
        series: kinds.map((kind) => ({
          label: TRIES[kind],
          values: pick(kind, "rate"), low: pick(kind, "low"), high: pick(kind, "high"),
        })),
        unit: " %", format: (v) => v.toFixed(1) + " %", min: 0,
      });
    }
    if (rounds.some((r) => r.groups)) {
      chart(host, {
        title: "Groups with variance, which teach",
        ticks,
        series: [{ label: "share", values: rounds.map((r) => (r.groups ? (100 * r.groups_with_variance) / r.groups : null)) }],
        unit: " %", format: (v) => v.toFixed(1) + " %", min: 0, max: 100,
        rows: rounds.map((r) => [`${r.round} · ${r.version}`, `${number(r.groups_with_variance)} of ${number(r.groups)}`]),
      });
    }
    if (rounds.some((r) => r.reflection_tokens)) {
      const of = (field) => rounds.map((r) => (r.reflection_tokens ? r.reflection_tokens[field] : null));
      chart(host, {
        title: "Tokens of a reflection: mean, and the middle 80 %",
        ticks,
        series: [{ label: "mean", values: of("mean"), low: of("p10"), high: of("p90") }],
        format: (v) => v.toFixed(1), min: 0,
      });
    }
  }
  steps(host, facts.steps);
  for (const { round, episodes, rates } of facts.rounds.filter((r) => r.episodes && r.version === UNKNOWN)) {
    const shares = Object.keys(TRIES).filter((kind) => rates[kind]).map((kind) => `${TRIES[kind]} ${percent(rates[kind].rate)}`);
    const text = `Not on the curves: ${number(episodes)} episodes of round ${round} whose policy version is not known`;
    host.append(nothing([text, ...shares].join(" · ")));
  }
  if (!host.childElementCount) host.append(nothing("No round is collected and no version is trained yet."));
}

function steps(host, logs) {
  const versions = Object.keys(logs).filter((version) => Object.keys(logs[version]).length);
  const length = (version) => Math.max(...Object.values(logs[version]).map((values) => values.length));
  const ticks = versions.flatMap((version) => Array.from({ length: length(version) }, (_, i) => `${version}:${i + 1}`));
  for (const metric of METRICS.filter((m) => versions.some((version) => logs[version][m])).slice(0, 6)) {
    const values = versions.flatMap((v) => logs[v][metric] || Array(length(v)).fill(null));
    if (!values.some(Number.isFinite)) continue;
    chart(host, {
      title: `Training: ${words(metric)}`,
      ticks,
      series: [{ label: words(metric), values }],
      points: ticks.length < 2,
    });
  }
}

function costs(facts) {
  const host = byId("costs");
  const money = facts.spending.some((s) => s.cost !== null);
  const head = ["Episodes of", "Version", "Episodes", "Ended passed", "Prompt tokens", "Sampled tokens", "Sampled per passed"];
  const rows = facts.spending.map((s) => [
    s.store, s.version, number(s.episodes), percent(s.episodes ? s.passed / s.episodes : null), number(s.prompt),
    number(s.sampled), s.passed ? number(Math.round(s.sampled / s.passed)) : "–",
    ...(money ? [s.cost === null ? "–" : s.cost.toPrecision(4)] : []),
  ]);
  const all = facts.spending.reduce((sum, s) => sum + s.sampled, 0);
  host.replaceChildren(
    rows.length ? table("Tokens and cost", money ? [...head, `Cost, ${facts.currency}`] : head, rows) : nothing("No tokens are sampled yet."),
    rows.length ? el("p", { class: "quiet" }, `${number(all)} tokens sampled in all.${money ? "" : " Prices in policy.prices of r3.toml add the cost."}`) : "",
  );
}

function failures(facts) {
  const host = byId("kinds");
  const versions = Object.keys(facts.failures);
  const totals = versions.map((v) => Object.values(facts.failures[v]).reduce((a, b) => a + b, 0));
  const kinds = [...new Set(versions.flatMap((v) => Object.keys(facts.failures[v])))];
  const rows = kinds.map((kind) => [
    kind,
    ...versions.map((v, i) => {
      const n = facts.failures[v][kind];
      return n ? `${percent(n / totals[i])} (${number(n)})` : "–";
    }),
  ]);
  host.replaceChildren(rows.length ? table("Outcomes by version", ["Outcome", ...versions], rows) : nothing("No try is stored yet."));
}

function events(facts) {
  const found = facts.timeline.map((event) =>
    el("li", { class: event.kind }, el("time", { datetime: event.at }, time(event.at)), el("span", {}, nodes(event.text))),
  );
  byId("events").replaceChildren(...(found.length ? found : [el("li", {}, "No version is made yet.")]));
}
