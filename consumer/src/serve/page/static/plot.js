// Reads values off the plots, with the pointer or, on a focused plot, with the arrow keys.
import { moment } from "./clock.js";

const SVG = "http://www.w3.org/2000/svg";

function points() {
  return [...document.querySelectorAll("#values tbody tr")].map((row) => ({
    ms: Number(row.dataset.ms),
    cells: [...row.cells].slice(1).map((cell) => cell.textContent),
  }));
}

/** The index of the last point at or before a time, else 0. */
function before(all, ms) {
  let low = 0;
  let high = all.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (all[middle].ms <= ms) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

export function startPlot() {
  document.addEventListener("plot", readPlot);
  readPlot();
}

function readPlot() {
  const plot = document.getElementById("plot");
  if (!plot || plot.tabIndex === 0) return;
  const all = points();
  if (!all.length) return;
  const from = Number(plot.dataset.start);
  const to = Number(plot.dataset.end);
  const out = document.getElementById("reading");
  const rest = out.textContent;
  let at = -1;

  const draw = () => {
    for (const svg of plot.querySelectorAll("svg")) {
      let line = svg.querySelector(".reading");
      if (at < 0) {
        line?.remove();
        continue;
      }
      if (!line) {
        line = document.createElementNS(SVG, "line");
        line.setAttribute("class", "reading");
        svg.append(line);
      }
      const box = svg.closest("[data-x0]");
      const [x0, x1] = [Number(box.dataset.x0), Number(box.dataset.x1)];
      const x = to > from ? x0 + ((all[at].ms - from) / (to - from)) * (x1 - x0) : x0;
      for (const [name, value] of [["x1", x], ["x2", x], ["y1", 0], ["y2", svg.viewBox.baseVal.height]]) line.setAttribute(name, value);
    }
    if (at < 0) out.textContent = rest;
    else {
      const [progress, memory, cores, status] = all[at].cells;
      out.textContent = `${moment(all[at].ms)}: progress ${progress}, memory ${memory}, cores ${cores}${status ? `, ${status}` : ""}`;
    }
  };
  plot.tabIndex = 0;
  plot.addEventListener("pointermove", (event) => {
    const svg = event.target.closest("svg");
    if (!svg) return;
    const rect = svg.getBoundingClientRect();
    const box = svg.closest("[data-x0]");
    const [x0, x1] = [Number(box.dataset.x0), Number(box.dataset.x1)];
    const x = ((event.clientX - rect.left) / rect.width) * svg.viewBox.baseVal.width;
    at = before(all, from + ((x - x0) / (x1 - x0)) * (to - from));
    draw();
  });
  const leave = () => {
    at = -1;
    out.setAttribute("aria-live", "off");
    draw();
  };
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const last = all.length - 1;
    const start = at < 0 ? last + 1 : at;
    const next = { ArrowLeft: start - 1, ArrowRight: start + 1, Home: 0, End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    out.setAttribute("aria-live", "polite");
    at = Math.min(last, Math.max(0, next));
    draw();
  });
}
