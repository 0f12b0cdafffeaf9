// The slider that chooses the time of day on a page of the past.
import { moment } from "./clock.js";

export function startPast() {
  const at = document.body.dataset.at;
  const slider = document.getElementById("day");
  if (!at || !slider) return;
  const chosen = () => Date.parse(`${at.slice(0, 10)}T00:00:00Z`) + Number(slider.value) * 1000;
  const out = document.getElementById("day-out");
  const write = () => {
    const text = moment(chosen());
    out.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  slider.addEventListener("input", write);
  slider.addEventListener("change", () => {
    const url = new URL(location.href);
    url.searchParams.set("at", new Date(chosen()).toISOString().replace(".000", ""));
    url.searchParams.delete("cursor");
    location.assign(url);
  });
  document.addEventListener("zone", write);
  write();
}
