// Updates the cells of a list's rows in place.
import { writeTimes } from "./clock.js";
import { changed } from "./rows.js";

/** A copy of the cell without formatted times and running durations, for comparison. */
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
  // The age of a last report always changes, so it is not highlighted.
  if (!taken.querySelector("[data-ago]")) changed(taken);
  if (focus) [...taken.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focus)?.focus({ preventScroll: true });
}

const rows = (page) => [...page.querySelectorAll("table.list tbody tr")];

/** Replaces the cells of a row that changed. */
function takeCells(row, fresh) {
  [...row.cells].forEach((cell, i) => fresh.cells[i] && takeCell(cell, fresh.cells[i]));
}

/** Updates one row from a newer page; does nothing if that page lacks the row. */
export function takeRow(row, page) {
  const fresh = rows(page).find((other) => other.dataset.id === row.dataset.id);
  if (fresh) takeCells(row, fresh);
}

/** Updates the rows that both pages have. Returns the number of rows that only the newer page has (fresh) and the rows that it lacks (gone). */
export function takeRows(page) {
  const newer = new Map(rows(page).map((row) => [row.dataset.id, row]));
  const gone = [];
  for (const row of rows(document)) {
    const fresh = newer.get(row.dataset.id);
    if (fresh) {
      takeCells(row, fresh);
      newer.delete(row.dataset.id);
    } else gone.push(row);
  }
  return { fresh: newer.size, gone };
}
