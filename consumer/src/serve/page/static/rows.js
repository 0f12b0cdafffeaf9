// Writes a task's new values into its row. Text from reports never becomes markup: only textContent is set.
import { duration, setText, writeTimes } from "./clock.js";

const STATUS = {
  Inited: "waiting",
  WaitForRetry: "waiting",
  Scheduled: "waiting",
  Running: "running",
  Succeed: "good",
  Failed: "bad",
  Timeout: "bad",
  Cancelled: "ended",
  Unknown: "unknown",
};
const ABSENT = "—";
const SVG = "http://www.w3.org/2000/svg";

export const isOver = (status) => !["waiting", "running"].includes(STATUS[status]);

function element(name, className, ...children) {
  const node = document.createElement(name);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function shape(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "shape");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#s-${name}`);
  svg.append(use);
  return svg;
}

/** Highlights a changed cell. */
export function changed(cell) {
  cell.classList.remove("changed");
  cell.addEventListener("animationend", () => cell.classList.remove("changed"), { once: true });
  cell.classList.add("changed");
}

function writeStatus(row, status) {
  const known = status in STATUS ? status : "Unknown";
  if (row.dataset.status === status) return;
  row.dataset.status = status;
  const cell = row.querySelector(".c-status");
  cell.replaceChildren(element("span", `status ${STATUS[known]}`, shape(known), element("span", "", status)));
  changed(cell);
}

function writeProgress(row, value) {
  const cell = row.querySelector(".c-progress");
  const text = value === null ? "no data" : `${(value * 100).toFixed(1)} %`;
  const words = cell.querySelector(".num");
  if (words.textContent === text && value === null) return;
  if (words.textContent !== text) changed(cell);
  let bar = cell.querySelector("progress");
  if (value === null) {
    const gap = element("span", "no-value");
    gap.setAttribute("aria-hidden", "true");
    bar?.replaceWith(gap);
    words.classList.add("quiet");
  } else {
    if (!bar) {
      bar = element("progress");
      bar.max = 1;
      bar.setAttribute("aria-label", `Progress of ${row.querySelector(".c-task").textContent.trim()}`);
      cell.querySelector(".no-value")?.replaceWith(bar);
      words.classList.remove("quiet");
    }
    bar.value = value;
  }
  setText(words, text);
}

function writeRunning(row, task) {
  const cell = row.querySelector(".c-running");
  if (task.started_at && !task.ended_at && !isOver(task.status)) {
    if (cell.querySelector("[data-from]")) return;
    const ticking = element("span");
    ticking.dataset.from = task.started_at;
    cell.replaceChildren(ticking);
  } else if (task.started_at) {
    const until = task.ended_at ?? task.reported_at;
    cell.replaceChildren(duration(Math.max(0, Date.parse(until) - Date.parse(task.started_at)) / 1000));
  }
}

/** Whether a row already shows this report or a later one. */
export function isKnown(row, task) {
  return Date.parse(row.querySelector(".c-reported time").dateTime) >= Date.parse(task.reported_at) && row.dataset.status === task.status;
}

export function writeRow(row, task) {
  writeStatus(row, task.status);
  writeProgress(row, task.progress);
  writeRunning(row, task);
  const reported = row.querySelector(".c-reported time");
  reported.dateTime = task.reported_at;
  if (isOver(task.status) && task.status !== "Unknown") clearHeld(row);
  writeTimes(row);
}

/** Clears marks and resources of an ended task. For other tasks they are not part of a change, and are polled. */
function clearHeld(row) {
  row.querySelector(".c-reported .marks").replaceChildren();
  for (const name of [".c-memory", ".c-cores"]) {
    const cell = row.querySelector(name);
    if (cell.textContent === ABSENT) continue;
    cell.textContent = ABSENT;
    changed(cell);
  }
}
