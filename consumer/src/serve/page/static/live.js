// Live updates: a stream of changed tasks, read with fetch so that no token appears in an address. A hidden tab pauses.
// Rows stay in place; new and ended tasks are counted, and the reader decides when to show them.
import { ago, duration, moment } from "./clock.js";
import { isKnown, isOver, writeRow } from "./rows.js";
import { announce, offer, say, sayTrouble } from "./state.js";
import { fetched, swapParts } from "./swap.js";

const RETRY_MS = [1000, 2000, 4000, 8000, 15000];
const SILENCE_MS = 40000; // the server sends a comment every 15 s
const MARKS_MS = 20000; // the stream does not report silence: marks and counts are polled
const TASK_MS = 1000; // a task's page is reloaded at most once a second
const IDENTITY = ["exec_id_prefix", "job_id", "user", "engine_type", "engine_instance"];

const { view, at } = document.body.dataset;
let since = document.body.dataset.since;
let readAt = Date.now();
let changedAt = null;
let lostAt = null;
let stream = null; // AbortController of the running stream
let waiting = null; // timer of the next attempt
let attempts = 0;
const fresh = new Set(); // new tasks that are not in the list
const over = new Set(); // listed tasks that ended
let isTaskOld = false; // the task changed since its page was loaded
let isReadingTask = false; // its page is being loaded

const rows = () => new Map([...document.querySelectorAll("#tasks tbody tr")].map((row) => [row.dataset.id, row]));

function sayLive() {
  if (lostAt === null && stream) say("live", changedAt === null ? "live" : `live, change ${ago((Date.now() - changedAt) / 1000)}`);
}

const offerChanges = () => offer([[fresh.size, "new"], [over.size, "ended"]]);

const isEmptyList = () => view === "tasks" && !document.getElementById("tasks");

/** Whether a task started after the list was loaded and matches its filters. */
function isNew(task) {
  const asked = new URLSearchParams(location.search);
  const statuses = asked.getAll("status");
  if (statuses.length && !statuses.includes(task.status)) return false;
  if (asked.get("running") === "true" && isOver(task.status)) return false;
  if (["silent", "stalled", "cursor"].some((name) => asked.has(name))) return false;
  return Date.parse(task.started_at) >= Date.parse(document.body.dataset.now);
}

function takeList(tasks) {
  const shown = rows();
  const ended = [];
  for (const task of tasks) {
    const row = shown.get(encodeURIComponent(task.exec_id));
    if (!row) {
      if (isNew(task)) fresh.add(task.exec_id);
      continue;
    }
    if (isKnown(row, task)) continue;
    const wasOver = isOver(row.dataset.status);
    writeRow(row, task);
    if (!wasOver && isOver(task.status)) {
      over.add(task.exec_id);
      ended.push(row.querySelector(".c-task").textContent.trim());
    }
  }
  if (ended.length) announce(ended.length === 1 ? `Task ${ended[0]} ended` : `${ended.length} tasks ended`);
  offerChanges();
  if (isEmptyList() && fresh.size) show();
}

function take(tasks) {
  if (tasks.length) changedAt = Date.now();
  if (view === "tasks") takeList(tasks);
  const id = document.getElementById("task")?.dataset.id;
  if (id !== undefined && tasks.some((task) => encodeURIComponent(task.exec_id) === id)) readTaskSoon();
  sayLive();
}

/** Reloads the task's page after a pause, and again if the task changes meanwhile, so that its last change is shown. */
async function readTaskSoon() {
  isTaskOld = true;
  if (isReadingTask) return;
  isReadingTask = true;
  do {
    await new Promise((done) => setTimeout(done, TASK_MS));
    if (document.hidden) break;
    isTaskOld = false;
    try {
      await readTask();
    } catch {
      isTaskOld = true; // retried once the stream is connected again
      break;
    }
  } while (isTaskOld);
  isReadingTask = false;
}

/** Reloads the task's page and swaps its parts. */
async function readTask() {
  const page = await fetched(location.href);
  const task = document.getElementById("task");
  const before = task.dataset.status;
  task.dataset.status = page.getElementById("task").dataset.status;
  swapParts(page, "[data-part]");
  if (before !== task.dataset.status) announce(`Now ${task.dataset.status}`);
  readAt = Date.now();
}

async function readList() {
  swapList(await fetched(location.href));
}

/** Reloads the list, which shows new and ended tasks in the server's order. */
async function show() {
  try {
    await readList();
    if (lostAt === null) sayTrouble(null);
  } catch (error) {
    sayTrouble(`The list could not be loaded: ${error.message}. Try again.`);
  }
}

function swapList(page) {
  fresh.clear();
  over.clear();
  document.body.dataset.now = page.body.dataset.now;
  readAt = Date.now();
  const hasRows = document.getElementById("tasks") && page.getElementById("tasks");
  swapParts(page, hasRows ? "#tasks tbody" : "#list");
  swapParts(page, ".foot");
  swapParts(page, ".chips");
  offerChanges();
  announce("The list is up to date");
}

/** Polls what the stream does not report: marks, counts and resources. */
async function readMarks() {
  if (view !== "tasks" || document.hidden || lostAt !== null) return;
  try {
    const page = await fetched(location.href);
    if (isEmptyList() && page.getElementById("tasks")) {
      swapList(page);
      return;
    }
    swapParts(page, ".chips");
    const newer = new Map([...page.querySelectorAll("#tasks tbody tr")].map((row) => [row.dataset.id, row]));
    for (const [id, row] of rows()) {
      for (const cell of [".marks", ".c-memory", ".c-cores"]) {
        const next = newer.get(id)?.querySelector(cell);
        const old = row.querySelector(cell);
        if (next && old && next.textContent !== old.textContent) old.replaceWith(document.importNode(next, true));
      }
    }
  } catch {
    // The stream notices as well, and shows it.
  }
}

/** The stream's address: filters by identity only, so that it reports tasks whatever their state. */
function changesAddress() {
  const address = new URL("/api/v1/changes", location.href);
  const asked = new URLSearchParams(location.search);
  const task = document.getElementById("task");
  if (task) address.searchParams.set("exec_id_prefix", decodeURIComponent(task.dataset.id));
  else for (const name of IDENTITY) if (asked.has(name)) address.searchParams.set(name, asked.get(name));
  if (since) address.searchParams.set("since", since);
  return address;
}

/** Parses server-sent events; yields null after each chunk. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let event = { name: "message", data: [] };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const lines = text.split(/\r\n|\n|\r/);
    text = lines.pop();
    for (const line of lines) {
      if (line === "") {
        yield { ...event, data: event.data.join("\n") };
        event = { name: "message", data: [] };
        continue;
      }
      const [, field, rest] = /^([^:]*):? ?(.*)$/.exec(line) ?? [];
      if (field === "event") event.name = rest;
      else if (field === "data") event.data.push(rest);
      else if (field === "id") event.id = rest;
    }
    yield null;
  }
}

async function connect() {
  clearTimeout(waiting);
  waiting = null;
  if (document.hidden || stream) return;
  const own = (stream = new AbortController());
  let heard = setTimeout(() => own.abort(), SILENCE_MS);
  try {
    const address = changesAddress();
    const response = await fetch(address, { headers: { accept: "text/event-stream" }, cache: "no-store", signal: own.signal });
    if (!response.ok) throw await problem(response);
    for await (const event of events(response.body)) {
      clearTimeout(heard);
      heard = setTimeout(() => own.abort(), SILENCE_MS);
      if (!event) continue;
      if (event.name === "tasks") take(JSON.parse(event.data).items);
      // The stream continues after this event's watermark. If reloading fails, the id is not taken over, and the next
      // connection starts from the old one.
      if (event.name === "reset") await readAgain();
      if (event.id) {
        since = event.id;
        connected();
      }
    }
    lost(own, new Error("the server ended the connection"));
  } catch (error) {
    lost(own, error);
  } finally {
    clearTimeout(heard);
    own.abort(); // closes the stream if reloading failed
  }
}

/** All changes up to `since` are shown or about to be. */
function connected() {
  lostAt = null;
  attempts = 0;
  sayTrouble(null);
  sayLive();
  if (isTaskOld) readTaskSoon();
}

const readAgain = () => (view === "tasks" ? readList() : readTask());

async function problem(response) {
  const seconds = Number(response.headers.get("retry-after"));
  let detail = `the server answered ${response.status}`;
  try {
    const { title, detail: more } = await response.json();
    detail = more ?? title ?? detail;
  } catch {
    // Not a problem document: only the status is known.
  }
  return Object.assign(new Error(detail), { afterMs: seconds > 0 ? seconds * 1000 : undefined });
}

function lost(own, error) {
  if (stream !== own) return; // ended on purpose
  stream = null;
  if (document.hidden) return;
  lostAt ??= Date.now();
  const delay = error.afterMs ?? RETRY_MS[Math.min(attempts, RETRY_MS.length - 1)];
  attempts += 1;
  const why = error.name === "TypeError" ? "the server does not answer" : error.name === "AbortError" ? "the connection timed out" : error.message;
  if (attempts > 1) {
    say("away", `not live since ${moment(lostAt)}`);
    sayTrouble(`Not live: ${why}. Showing data of ${moment(changedAt ?? readAt)}. Retrying every ${duration(Math.max(1, delay / 1000))}.`);
  }
  waiting = setTimeout(connect, delay);
}

/** Reloads now, or once the tab is visible. */
function reload() {
  if (document.hidden) document.addEventListener("visibilitychange", reload, { once: true });
  else location.reload();
}

export function startLive() {
  if (at) return;
  if (view === "retry") setTimeout(reload, 5000);
  if (view !== "tasks" && view !== "task") return;
  if (view === "tasks") document.addEventListener("show", show);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      const own = stream;
      stream = null;
      own?.abort();
      clearTimeout(waiting);
      say("paused", "paused");
    } else {
      readMarks();
      connect();
    }
  });
  setInterval(() => document.hidden || sayLive(), 1000);
  setInterval(readMarks, MARKS_MS);
  connect();
}
