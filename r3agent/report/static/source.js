"use strict";
// Where the page has its data from: blocks of its own file, or the server that it came from.

const PAGE = JSON.parse(byId("r3-page").textContent);

const whole = new Promise((resolve) => {
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", resolve);
  else resolve();
});

async function unpacked(id) {
  if (!byId(id)) await whole; // the block is still being read
  const bytes = Uint8Array.from(atob(byId(id).textContent), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

async function asked(path, options) {
  const response = await fetch(path, { cache: "no-store", ...options });
  const found = await response.json();
  if (!response.ok) throw new Error(found.error || `${response.status} ${response.statusText}`);
  return found;
}

const fromFile = {
  facts: async () => JSON.parse(byId("r3-facts").textContent),
  index: () => unpacked("r3-index"),
  texts: async () => Object.entries(await unpacked("r3-texts")),
  chunk: (i) => unpacked(`r3-chunk-${i}`),
};

let revision = 0;
let textsRevision = 0; // that of the texts which the page has
const fromServer = {
  facts: async () => {
    const found = await asked("api/facts");
    revision = found.revision;
    return found.facts;
  },
  index: () => asked(`api/index?revision=${revision}`),
  texts: async () => {
    const wanted = revision;
    const found = Object.entries(await asked(`api/texts?revision=${wanted}&since=${textsRevision}`));
    textsRevision = wanted;
    return found;
  },
  chunk: (i) => asked(`api/chunk/${i}?revision=${revision}`),
};

const SOURCE = PAGE.live ? fromServer : fromFile;

function sendLabel(label) {
  const headers = { "Content-Type": "application/json", "X-R3-Token": PAGE.token };
  return asked("api/label", { method: "POST", headers, body: JSON.stringify(label) });
}
