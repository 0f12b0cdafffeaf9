// Times: running durations, the chosen time zone, and formats.
const ZONE = "taskrunning.zone";

// The server's clock minus the browser's, in milliseconds.
let ahead = Date.parse(document.body.dataset.now) - Date.now();

/** The server's time, in milliseconds; the past time if one is shown. */
export function now() {
  const at = document.body.dataset.at;
  return at ? Date.parse(at) : Date.now() + ahead;
}

/** Adjusts to the server's clock. */
export function setNow(text) {
  const time = Date.parse(text);
  if (!Number.isNaN(time)) ahead = time - Date.now();
}

const two = (n) => String(n).padStart(2, "0");

/** A duration in the server's format: 7 s, 12 m 04 s, 2 h 10 m, 3 d 04 h. */
export function duration(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} m ${two(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} m`;
  return `${Math.floor(s / 86400)} d ${two(Math.floor((s % 86400) / 3600))} h`;
}

export function ago(seconds) {
  return seconds < -1 ? `in ${duration(-seconds)}` : `${duration(seconds)} ago`;
}

export function isLocal() {
  return localStorage.getItem(ZONE) === "local";
}

function written(ms, local) {
  const date = new Date(ms);
  if (!local) return `${date.toISOString().slice(0, 19).replace("T", " ")} UTC`;
  const offset = -date.getTimezoneOffset();
  const zone = `UTC${offset < 0 ? "−" : "+"}${two(Math.floor(Math.abs(offset) / 60))}:${two(Math.abs(offset) % 60)}`;
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())} ${zone}`;
}

/** A moment in the chosen zone, with the zone's name. */
export function moment(ms) {
  return written(ms, isLocal());
}

export function setText(node, text) {
  if (node && node.textContent !== text) node.textContent = text;
}

/** Writes each time below a node in the chosen zone; its title has the other zone. */
export function writeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const ms = Date.parse(time.dateTime);
    if (Number.isNaN(ms)) continue;
    if ("ago" in time.dataset) {
      time.title = `${moment(ms)}; ${written(ms, !isLocal())}`;
    } else {
      setText(time, moment(ms));
      time.title = written(ms, !isLocal());
    }
  }
  tick(root);
}

/** Updates all ages and running durations below a node. */
export function tick(root) {
  const at = now();
  for (const node of root.querySelectorAll("[data-from]")) {
    setText(node, duration((at - Date.parse(node.dataset.from)) / 1000));
  }
  for (const node of root.querySelectorAll("time[data-ago]")) {
    setText(node, ago((at - Date.parse(node.dateTime)) / 1000));
  }
}

export function startClock() {
  const button = document.getElementById("zone");
  const apply = () => {
    setText(button, isLocal() ? moment(Date.now()).split(" ")[2] : "UTC");
    button.setAttribute("aria-label", isLocal() ? "Times are local; switch to UTC" : "Times are UTC; switch to local time");
    writeTimes(document);
    document.dispatchEvent(new Event("zone"));
  };
  button.addEventListener("click", () => {
    localStorage.setItem(ZONE, isLocal() ? "utc" : "local");
    apply();
  });
  apply();
  if (!document.body.dataset.at) setInterval(() => document.hidden || tick(document), 1000);
}
