// Reloads the views that have no stream of changes: jobs, engines and usage. Rows stay in place; new and removed ones
// are counted, and the reader decides when to show them. A hidden tab pauses.
import { ago, duration, moment } from "./clock.js";
import { takeRow, takeRows } from "./cells.js";
import { announce, offer, say, sayTrouble } from "./state.js";
import { fetched, swapParts } from "./swap.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15000];
const GONE_AT_ONCE = 10; // rows that left the list and are read one by one
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

async function take(page) {
  if (wantsAll || !hasRows(document) || !hasRows(page)) {
    const asked = wantsAll;
    wantsAll = false;
    swapParts(page, "#list");
    swapParts(page, ".foot");
    offer([]);
    if (asked) announce("The list is up to date");
  } else {
    const { fresh, gone } = takeRows(page);
    offer([[fresh, "new"], [gone.length, "no longer listed"]]);
    if (document.body.dataset.view === "jobs") await takeGone(gone);
  }
  swapParts(page, "[data-part]");
}

/** Updates rows of jobs that left the list, which would otherwise show tasks as running that have ended. Rows without running tasks are final. */
async function takeGone(gone) {
  const running = gone.filter((row) => row.querySelector(".c-live").textContent !== "0");
  for (const row of running.slice(0, GONE_AT_ONCE)) {
    const address = new URL(location.href);
    for (const name of ["running", "cursor"]) address.searchParams.delete(name);
    address.searchParams.set("job_id", decodeURIComponent(row.dataset.id));
    takeRow(row, await fetched(address));
  }
}

async function read() {
  if (isReading || document.hidden) return;
  isReading = true;
  clearTimeout(waiting);
  const began = performance.now();
  let delay;
  try {
    await take(await fetched(location.href));
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
