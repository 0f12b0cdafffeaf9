// The page's own state: whether it is live, errors, and announcements for screen readers.
import { setText } from "./clock.js";

export function say(state, words) {
  const mark = document.getElementById("live");
  mark.className = `live is-${state}`;
  setText(mark.querySelector(".words"), words);
}

export function sayTrouble(text) {
  const box = document.getElementById("trouble");
  box.hidden = !text;
  setText(box, text ?? "");
  document.documentElement.classList.toggle("old", Boolean(text));
}

export function announce(text) {
  setText(document.getElementById("announcement"), text);
}

/** Offers to show the counted rows, as in "2 new, 1 ended while you read: show". */
export function offer(counts) {
  const button = document.getElementById("show");
  if (!button) return;
  const parts = counts.filter(([count]) => count > 0).map(([count, word]) => `${count} ${word}`);
  button.hidden = parts.length === 0;
  setText(button, parts.length ? `${parts.join(", ")} while you read: show` : "");
}
