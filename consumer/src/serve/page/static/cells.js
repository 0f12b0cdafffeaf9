// Takes newer cells into the rows of a list, where they stand.
import { writeTimes } from "./clock.js";
import { changed } from "./rows.js";

/** A cell without what passes by itself: how times are written, and what ticks. */
function bare(cell) {
  const copy = cell.cloneNode(true);
  copy.classList.remove("changed");
  for (const node of copy.querySelectorAll("time, [data-from]")) {
    node.removeAttribute("title");
    node.textContent = "";
  }
  return copy;
}

function takeCell(old, fresh) {
  if (bare(old).isEqualNode(bare(fresh))) return;
  const focus = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  const taken = document.importNode(fresh, true);
  old.replaceWith(taken);
  writeTimes(taken);
  // A last report is newer all the time.
  if (!taken.querySelector("[data-ago]")) changed(taken);
  if (focus) [...taken.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focus)?.focus({ preventScroll: true });
}

const rows = (page) => [...page.querySelectorAll("table.list tbody tr")];

/** How many rows of the newer page are not here, and how many of these rows are not there; all others are as there. */
export function takeRows(page) {
  const newer = new Map(rows(page).map((row) => [row.dataset.id, row]));
  let gone = 0;
  for (const row of rows(document)) {
    const fresh = newer.get(row.dataset.id);
    if (fresh) {
      [...row.cells].forEach((cell, i) => fresh.cells[i] && takeCell(cell, fresh.cells[i]));
      newer.delete(row.dataset.id);
    } else gone += 1;
  }
  return { fresh: newer.size, gone };
}
