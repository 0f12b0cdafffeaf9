// Reloads the views that have no stream of changes: jobs, engines and usage. Rows stay in place; new and removed ones
// are counted, and the reader decides when to show them. A hidden tab pauses.
import { ago, duration, moment } from "./clock.js";
import { takeRows } from "./cells.js";
import { announce, offer, say, sayTrouble } from "./state.js";
import { fetched, swapParts } from "./swap.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15000];
const REST = 10; // pauses for ten times the duration of an answer, to limit the load on the database

const everyMs = Number(document.body.dataset.every) * 1000;
let readAt = Date.now();
let lostAt = null;
let attempts = 0;
let isReading = false;
let wantsAll = false; // the reader wants the new and removed rows
let waiting = null;

const sayLive = () => lostAt === null && !document.hidden && say("live", `live, loaded ${ago((Date.now() - readAt) / 1000)}`);
const hasRows = (page) => page.querySelector("table.list") !== null;

function take(page) {
  if (wantsAll || !hasRows(document) || !hasRows(page)) {
    const asked = wantsAll;
    wantsAll = false;
    swapParts(page, "#list");
    swapParts(page, ".foot");
    offer([]);
    if (asked) announce("The list is up to date");
  } else {
    const { fresh, gone } = takeRows(page);
    offer([[fresh, "new"], [gone, "no longer listed"]]);
  }
  swapParts(page, "[data-part]");
}

async function read() {
  if (isReading || document.hidden) return;
  isReading = true;
  clearTimeout(waiting);
  const began = performance.now();
  let delay;
  try {
    take(await fetched(location.href));
    readAt = Date.now();
    delay = Math.max(everyMs, REST * (performance.now() - began));
    lostAt = null;
    attempts = 0;
    sayTrouble(null);
    sayLive();
  } catch (error) {
    delay = RETRY_MS[Math.min(attempts, RETRY_MS.length - 1)];
    attempts += 1;
    lostAt ??= Date.now();
    if (attempts > 1 || wantsAll) {
      say("away", `not live since ${moment(lostAt)}`);
      sayTrouble(`Not live: ${error.message}. Showing data of ${moment(readAt)}. Retrying every ${duration(Math.max(1, delay / 1000))}.`);
    }
  }
  isReading = false;
  // A request made meanwhile is served at once.
  if (!document.hidden) waiting = setTimeout(read, wantsAll && attempts === 0 ? 0 : delay);
}

export function startReread() {
  if (document.body.dataset.at || !everyMs) return;
  document.addEventListener("show", () => {
    wantsAll = true;
    read();
  });
  document.addEventListener("visibilitychange", () => {
    clearTimeout(waiting);
    if (document.hidden) say("paused", "paused");
    else read();
  });
  setInterval(sayLive, 1000);
  sayLive();
  waiting = setTimeout(read, everyMs);
}
