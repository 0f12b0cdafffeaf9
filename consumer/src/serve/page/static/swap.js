// Loads newer parts of this page. XMLHttpRequest parses them into a document without running its scripts, and needs no
// exception from Trusted Types.
import { setNow, writeTimes } from "./clock.js";

/** The page at an address, as a document. */
export function fetched(address) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("GET", address);
    request.responseType = "document";
    request.timeout = 15000;
    request.onload = () => {
      const page = request.response;
      // After the session has ended, the server returns the login form.
      if (request.status === 200 && page?.body?.dataset.view !== document.body.dataset.view) reject(new Error("the server sent another page; reload this one"));
      else if (request.status === 200) resolve(page);
      else reject(new Error(`the server answered ${request.status}`));
    };
    request.onerror = () => reject(new Error("no answer"));
    request.ontimeout = () => reject(new Error("no answer within 15 s"));
    request.send();
  });
}

// Focusable elements without an id or href.
const OTHERS = "summary, .scroll";

/** Replaces the selected parts. Keeps open details, scroll positions and the focus. */
export function swapParts(page, selector) {
  setNow(page.body.dataset.now);
  for (const old of document.querySelectorAll(selector)) {
    const name = old.dataset.part;
    const fresh = name ? page.querySelector(`[data-part="${name}"]`) : page.querySelector(selector);
    if (!fresh) continue;
    const held = document.activeElement;
    const focus = old.contains(held)
      ? { id: held.id, href: held.getAttribute("href"), place: [...old.querySelectorAll(OTHERS)].indexOf(held) }
      : null;
    const open = [...old.querySelectorAll("details")].map((details) => details.open);
    const scrolled = [...old.querySelectorAll(".scroll")].map((box) => [box.scrollLeft, box.scrollTop]);
    const taken = document.importNode(fresh, true);
    old.replaceWith(taken);
    writeTimes(taken);
    taken.querySelectorAll("details").forEach((details, i) => (details.open = open[i] ?? details.open));
    taken.querySelectorAll(".scroll").forEach((box, i) => scrolled[i] && box.scrollTo(...scrolled[i]));
    // A plot becomes focusable once its module has initialized it.
    if (taken.querySelector("#plot")) document.dispatchEvent(new Event("plot"));
    if (focus) {
      const again = focus.id
        ? document.getElementById(focus.id)
        : focus.href
          ? [...taken.querySelectorAll("a[href]")].find((link) => link.getAttribute("href") === focus.href)
          : taken.querySelectorAll(OTHERS)[focus.place];
      again?.focus({ preventScroll: true });
    }
  }
}
