"use strict";
// The list of trajectories, its filters, and the panes of open ones.

const PAGE_SIZE = 50;
const FILTERS = { outcome: "outcome", version: "version", store: "store", error: "error" };
const browser = { index: null, texts: null, parts: [], found: [], page: 0, chunks: new Map(), open: [null, null], shown: [] };

const place = (id) => browser.index.columns.id.indexOf(id);

function useIndex(index) {
  Object.assign(browser, { index, texts: null, chunks: new Map() });
  const { names, outcomes, labels } = index;
  options("f-outcome", outcomes.map((name, i) => [i, name]));
  options("f-label", labels.map((name, i) => [1 << i, words(name)]));
  options("f-version", names.version.map((name, i) => [i, name]).sort((a, b) => (a[1] < b[1] ? -1 : 1)));
  options("f-store", names.store.map((name, i) => [i, name]));
  options("f-error", names.error.map((name, i) => [i, name || "none"]));
  options("f-by", [[1, "labelled by a person or system"], [0, "the verifier's alone"]]);
  const has = names.error.some(Boolean);
  byId("f-error").closest("label").hidden = !has;
  refresh();
}

// Texts are searched when they are there: they are unpacked after the page is shown. Given are those of chunks that
// changed, by number.
function useTexts(chunks) {
  browser.parts.length = browser.index.chunks.length;
  for (const [number, texts] of chunks) browser.parts[number] = texts.map((text) => text.toLowerCase());
  browser.texts = browser.parts.flat();
  if (byId("f-text").value) refresh();
}

function options(id, pairs) {
  const select = byId(id);
  const chosen = select.selectedOptions[0] ? select.selectedOptions[0].textContent : "";
  select.replaceChildren(el("option", { value: "" }, "any"), ...pairs.map(([value, name]) => el("option", { value }, plain(name))));
  const again = [...select.options].find((option) => option.textContent === chosen);
  if (again) again.selected = true;
}

function matching() {
  const { columns, names } = browser.index;
  const wanted = Object.entries(FILTERS).map(([id, column]) => [columns[column], byId("f-" + id).value]).filter(([, v]) => v !== "").map(([column, v]) => [column, Number(v)]);
  const [label, by] = ["f-label", "f-by"].map((id) => byId(id).value);
  if (by !== "") wanted.push([columns.by, Number(by)]);
  const task = byId("f-task").value.toLowerCase();
  const tasks = task ? names.task.map((name) => name.toLowerCase().includes(task)) : null;
  const text = byId("f-text").value.toLowerCase();
  const found = [];
  for (let i = 0; i < columns.id.length; i++) {
    if (!wanted.every(([column, value]) => column[i] === value)) continue;
    if (label !== "" && !(columns.labels[i] & label)) continue;
    if (tasks && !tasks[columns.task[i]]) continue;
    if (text && !(browser.texts ? browser.texts[i] : columns.id[i]).includes(text)) continue;
    found.push(i);
  }
  return found;
}

function refresh() {
  browser.found = matching();
  browser.page = 0;
  list();
}

function list() {
  const { found, page, index } = browser;
  const n = index.columns.id.length;
  const waiting = byId("f-text").value && !browser.texts ? "; texts are still being unpacked" : "";
  byId("count").replaceChildren(`${number(found.length)} of ${number(n)} trajectories${browser.more || ""}${waiting}`);
  const rows = found.slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE);
  const focused = document.activeElement.dataset.id;
  byId("list").replaceChildren(...rows.map((i) => el("li", {}, row(i))));
  if (focused) focusRow(focused);
  const last = Math.max(0, Math.ceil(found.length / PAGE_SIZE) - 1);
  byId("before").disabled = page === 0;
  byId("after").disabled = page >= last;
  byId("place").replaceChildren(found.length ? `${number(page * PAGE_SIZE + 1)} to ${number(page * PAGE_SIZE + rows.length)}` : "nothing found");
}

function row(i) {
  const { columns, names, outcomes } = browser.index;
  const outcome = outcomes[columns.outcome[i]];
  const id = columns.id[i];
  const button = el(
    "button",
    { type: "button", class: "row", "aria-current": browser.open[0] === id ? "true" : null, on: { click: () => openPane(0, id, true) } },
    el("span", { class: "chip " + outcome }, outcome),
    el("bdi", { class: "task" }, nodes(names.task[columns.task[i]])),
    el("span", { class: "quiet" }, nodes([names.version[columns.version[i]], names.store[columns.store[i]], names.error[columns.error[i]], `${number(columns.tokens[i])} tokens`, id.slice(0, 8)].filter(Boolean).join(" · "))),
  );
  button.dataset.id = id;
  return button;
}

function focusRow(id) {
  const found = [...byId("list").querySelectorAll(".row")].find((button) => button.dataset.id === id);
  if (found) found.focus();
  return Boolean(found);
}

async function bodyOf(i) {
  const firsts = browser.index.chunks;
  let low = 0;
  for (let high = firsts.length - 1; low < high; ) {
    const middle = (low + high + 1) >> 1;
    if (firsts[middle] <= i) low = middle;
    else high = middle - 1;
  }
  if (!browser.chunks.has(low)) {
    if (browser.chunks.size > 8) browser.chunks.delete(browser.chunks.keys().next().value);
    browser.chunks.set(low, SOURCE.chunk(low));
  }
  return (await browser.chunks.get(low))[i - firsts[low]];
}

async function openPane(side, id, focus) {
  browser.open[side] = id;
  if (side === 0) {
    browser.open[1] = null;
    history.replaceState(null, "", "#trajectory=" + encodeURIComponent(id));
    for (const button of byId("list").querySelectorAll(".row")) button.toggleAttribute("aria-current", button.dataset.id === id);
  }
  let content;
  try {
    const trajectory = await bodyOf(place(id));
    if (browser.open[side] !== id) return; // another was opened meanwhile
    content = pane(side, id, trajectory);
    browser.shown[side] = JSON.stringify(trajectory);
  } catch (error) {
    content = el("p", { class: "note" }, nodes(`Not opened: ${error.message}`));
  }
  const panes = byId("panes");
  while (panes.children.length > side) panes.lastChild.remove();
  panes.append(content);
  panes.classList.toggle("two", panes.children.length > 1);
  const heading = focus && content.querySelector("h3");
  if (heading) heading.focus();
}

function pane(side, id, trajectory) {
  const { columns, names, outcomes } = browser.index;
  const i = place(id);
  const store = names.store[columns.store[i]];
  const send = (span, passed, feedback) => sendLabel({ store, trajectory_id: id, span_id: span.id, passed, feedback: feedback || null });
  const heading = el("h3", { tabindex: "-1" }, el("bdi", {}, nodes(trajectory.task || "")), ` · ${plain(names.version[columns.version[i]])}`);
  const close = el("button", { type: "button", class: "small", on: { click: () => closePane(side) } }, "Close");
  return el(
    "section",
    { class: "pane", "aria-label": side ? "Compared trajectory" : "Open trajectory" },
    el("div", { class: "pane-head" }, heading, close),
    el("p", { class: "quiet" }, `${outcomes[columns.outcome[i]]} · `, nodes(`${store} · ${id} · ${time(trajectory.at)}`)),
    side ? "" : comparing(i),
    tree(trajectory, PAGE.live ? send : null),
  );
}

function comparing(i) {
  const { columns, names, outcomes } = browser.index;
  const others = columns.id.flatMap((_, k) => (columns.task[k] === columns.task[i] && k !== i ? [k] : []));
  if (!others.length) return "";
  others.sort((a, b) => (columns.version[a] === columns.version[i]) - (columns.version[b] === columns.version[i]));
  const name = (k) => [names.version[columns.version[k]], outcomes[columns.outcome[k]], names.store[columns.store[k]], columns.id[k].slice(0, 8)].join(" · ");
  const select = el("select", {}, el("option", { value: "" }, "nothing"), others.slice(0, 500).map((k) => el("option", { value: columns.id[k] }, plain(name(k)))));
  select.addEventListener("change", () => (select.value === "" ? closePane(1) : openPane(1, select.value, false)));
  return el("label", { class: "compare" }, "Same task, compared with ", select);
}

function closePane(side) {
  const panes = byId("panes");
  const id = browser.open[side];
  while (panes.children.length > side) panes.lastChild.remove();
  panes.classList.remove("two");
  browser.open.fill(null, side);
  hideTip();
  if (side === 0) {
    history.replaceState(null, "", "#trajectories");
    if (!focusRow(id)) byId("trajectories").focus();
  }
}

// Show the open trajectories that changed anew.
async function renewPanes() {
  for (const side of [0, 1]) {
    const id = browser.open[side];
    if (!id || place(id) < 0 || JSON.stringify(await bodyOf(place(id))) === browser.shown[side]) continue;
    const other = browser.open[1];
    await openPane(side, id, false);
    if (side === 0 && other) await openPane(1, other, false);
  }
}

function openFromAddress() {
  const match = /^#trajectory=(.+)$/.exec(location.hash);
  const id = match && browser.index ? decodeURIComponent(match[1]) : "";
  if (id && place(id) >= 0) openPane(0, id, true);
}

function turn(by) {
  browser.page += by;
  list();
  byId("list").querySelector(".row").focus();
}

byId("filters").addEventListener("input", refresh);
byId("filters").addEventListener("submit", (event) => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(refresh));
byId("before").addEventListener("click", () => turn(-1));
byId("after").addEventListener("click", () => turn(1));
byId("list").addEventListener("keydown", (event) => {
  const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  const rows = [...byId("list").querySelectorAll(".row")];
  const next = by && rows[rows.indexOf(document.activeElement) + by];
  if (next) {
    event.preventDefault();
    next.focus();
  }
});
addEventListener("hashchange", openFromAddress);
