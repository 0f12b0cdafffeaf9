// Takes newer parts of this page from the server. XMLHttpRequest makes a document of them without running anything in it,
// and needs no exception from Trusted Types.
import { setNow, writeTimes } from "./clock.js";

/** The page at an address as a document, and its status. */
export function fetched(address) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", address);
    request.responseType = "document";
    request.timeout = 15000;
    request.onload = () => {
      if (request.response) resolve({ status: request.status, page: request.response });
      else reject(new Error(`status ${request.status}`));
    };
    request.onerror = () => reject(new Error("no answer"));
    request.ontimeout = () => reject(new Error("no answer within 15 s"));
    request.send();
  });
}

/** Replaces the parts that differ; open details, scrolling and the focus stay. Returns how many were replaced. */
export function swapParts(page, selector) {
  setNow(page.body.dataset.now);
  let swapped = 0;
  for (const old of document.querySelectorAll(selector)) {
    const name = old.dataset.part;
    const fresh = name ? page.querySelector(`[data-part="${name}"]`) : page.querySelector(selector);
    if (!fresh) continue;
    const held = document.activeElement;
    const focus = old.contains(held) ? { id: held.id, href: held.getAttribute("href") } : null;
    const open = [...old.querySelectorAll("details")].map((details) => details.open);
    const scrolled = [...old.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
    const taken = document.importNode(fresh, true);
    old.replaceWith(taken);
    writeTimes(taken);
    taken.querySelectorAll("details").forEach((details, i) => (details.open = open[i] ?? details.open));
    taken.querySelectorAll(".scroll").forEach((box, i) => scrolled[i] && box.scrollTo(...scrolled[i]));
    if (focus) {
      const again = focus.id
        ? document.getElementById(focus.id)
        : [...taken.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focus.href);
      again?.focus({ preventScroll: true });
    }
    swapped += 1;
  }
  return swapped;
}
