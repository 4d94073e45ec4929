"use strict";

const POLL_MS = 2000;

async function load() {
  const facts = await SOURCE.facts();
  overview(facts);
  browser.more = facts.listed < facts.episodes ? `, an even sample of the ${number(facts.episodes)} stored` : "";
  useIndex(await SOURCE.index());
  document.body.dataset.ready = "index";
  useTexts(await SOURCE.texts());
  document.body.dataset.ready = "all";
}

async function reload() {
  const page = browser.page;
  await load();
  browser.page = Math.min(page, Math.max(0, Math.ceil(browser.found.length / PAGE_SIZE) - 1));
  list();
  const typing = document.activeElement.matches(".pane input") && document.activeElement.value;
  if (!typing) await renewPanes();
}

async function poll() {
  try {
    const state = await asked("api/state");
    if (state.revision !== revision) await reload();
    byId("foot").replaceChildren(`Served live; the figures are of revision ${state.revision}.`);
  } catch (error) {
    byId("foot").replaceChildren(...nodes(`The server does not answer (${error.message}); the page shows its last state.`));
  }
  setTimeout(poll, POLL_MS);
}

load()
  .then(openFromAddress)
  .catch((error) => byId("headline").replaceChildren(...nodes(`This page cannot be shown: ${error.message}`)))
  .finally(() => PAGE.live && setTimeout(poll, POLL_MS));
