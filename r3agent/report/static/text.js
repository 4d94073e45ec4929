"use strict";
// Text of models is shown as text: characters that would hide or reorder it are shown by their names.

const HIDDEN =
  /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]|\r(?!\n)|\p{Cs}/gu;
const NAMES = { 0x1b: "ESC", 0x0d: "CR", 0x00: "NUL", 0x08: "BS", 0x07: "BEL" };

function nameOf(character) {
  const code = character.codePointAt(0);
  return NAMES[code] || "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

// Text for attributes and options, which have no elements.
function plain(text) {
  return String(text).replace(HIDDEN, (character) => `⟨${nameOf(character)}⟩`);
}

// Nodes of a text.
function nodes(text) {
  const found = [];
  let end = 0;
  for (const match of String(text).matchAll(HIDDEN)) {
    found.push(text.slice(end, match.index), el("span", { class: "hidden-char" }, nameOf(match[0])));
    end = match.index + match[0].length;
  }
  found.push(String(text).slice(end));
  return found.filter((node) => node !== "");
}

// An element: attributes, `on` for listeners, then children, whose strings become text.
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, listen] of Object.entries(value)) element.addEventListener(event, listen);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, plain(value));
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// An element around text of unknown content, which keeps its own direction.
function quoted(tag, attributes, text) {
  return el(tag, { dir: "auto", ...attributes }, nodes(text));
}

// A part that folds; what a reader has opened or closed stays so when the page is updated.
const FOLDED = new Map();
function folded(key, open, summary, ...children) {
  const remember = () => FOLDED.set(key, !details.open); // it changes after the click
  const head = el("summary", { on: { click: remember } }, summary);
  const details = el("details", { open: FOLDED.get(key) ?? open }, head, ...children);
  return details;
}

const byId = (id) => document.getElementById(id);
const number = (value) => (value === null || value === undefined ? "–" : Number(value).toLocaleString("en"));
const percent = (value) => (value === null || value === undefined ? "–" : (100 * value).toFixed(1) + " %");
const signed = (value, digits = 1) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const words = (name) => String(name).replaceAll("_", " ");
const time = (text) => plain(text).replace("T", " ").replace(/(\.\d+)?(\+00:00|Z)$/, " UTC");

function table(caption, head, rows) {
  const cell = (value, i) => (i ? el("td", {}, nodes(value)) : el("th", { scope: "row" }, nodes(value)));
  return el(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el(
      "table",
      {},
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, head.map((name) => el("th", { scope: "col" }, nodes(name))))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell)))),
    ),
  );
}
