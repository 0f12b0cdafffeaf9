// Keyboard shortcuts. They are off in input fields and with modifier keys.
const links = () => [...document.querySelectorAll("table.list tbody tr")].map((row) => row.querySelector("a")).filter(Boolean);

function step(by) {
  const all = links();
  const row = document.activeElement?.closest?.("table.list tbody tr");
  const at = row ? all.findIndex((link) => row.contains(link)) : -1;
  const next = at < 0 ? (by > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, at + by));
  all[next]?.focus();
  all[next]?.scrollIntoView({ block: "nearest" });
}

const follow = (selector) => document.querySelector(selector)?.click();

function search() {
  const field = document.getElementById("search");
  if (!field) return follow("#back");
  document.getElementById("filters").open = true;
  field.focus();
  field.select();
}

function escape() {
  const open = document.querySelector("details.asof[open]");
  if (open) {
    open.open = false;
    open.querySelector("summary").focus();
  } else follow("#back");
}

export function startKeys() {
  const help = document.getElementById("help");
  document.getElementById("help-open").addEventListener("click", () => help.showModal());
  document.addEventListener("click", (event) => {
    if (!event.target.closest?.("#show")) return;
    event.preventDefault();
    document.dispatchEvent(new Event("show"));
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || help.open) return;
    const field = event.target.closest?.("input, select, textarea");
    if (field) {
      if (event.key === "Escape") field.blur();
      return;
    }
    const action = {
      "/": search,
      j: () => step(1),
      k: () => step(-1),
      s: () => document.dispatchEvent(new Event("show")),
      n: () => follow(".then a, .notice a"),
      1: () => follow("#views a:nth-child(1)"),
      2: () => follow("#views a:nth-child(2)"),
      3: () => follow("#views a:nth-child(3)"),
      4: () => follow("#views a:nth-child(4)"),
      u: () => follow("#zone"),
      "?": () => help.showModal(),
      Escape: escape,
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
