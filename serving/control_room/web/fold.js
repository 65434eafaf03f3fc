// Sections fold by their headings; which ones are folded is remembered in this browser.

import { el, storageOf } from "./dom.js";

const STORE = "control.folded";
const storage = storageOf("localStorage");

/** Makes the heading of every section below the loop a button that folds it. Links to a section unfold it. */
export function bindFolds(root) {
  const folded = new Set((storage?.getItem(STORE) ?? "").split(" ").filter(Boolean));
  const sections = [...root.querySelectorAll("section[id]:has(> header)")];
  const show = section => {
    section.toggleAttribute("data-folded", folded.has(section.id));
    section.querySelector("h2 button").setAttribute("aria-expanded", String(!folded.has(section.id)));
  };
  const fold = (section, whether) => {
    if (whether) folded.add(section.id);
    else folded.delete(section.id);
    storage?.setItem(STORE, [...folded].join(" "));
    show(section);
  };
  for (const section of sections) {
    const heading = section.querySelector("h2"), button = el("button", { type: "button" }, ...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => fold(section, !folded.has(section.id)));
    show(section);
  }
  addEventListener("hashchange", () => {
    const section = sections.find(({ id }) => `#${id}` === location.hash);
    if (section) fold(section, false);
  });
}
