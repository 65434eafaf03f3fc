// Buttons of an item: one for each kind of engagement that the app declares, and one that blocks a value.

import { make } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const FILLED = new Set(["heart", "send"]);

/** A symbol of the page, or the first letters of a name. */
export function iconOf({ icon, name }) {
  if (!icon) {
    const letters = make("i", "letters");
    letters.dataset.letters = [...name].slice(0, 2).join("");
    return letters;
  }
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("aria-hidden", "true");
  picture.append(document.createElementNS(SVG, "use"));
  picture.firstChild.setAttribute("href", `#${icon}`);
  return picture;
}

/** The buttons, in the order of the definition; `label`: with their names beside the icons. */
export function buttonsOf(app, { labelled = false } = {}) {
  const kinds = app.buttons.map((button) => {
    return buttonOf({ ...button, act: "engage", pressed: !button.isNegative, labelled });
  });
  if (app.groups.length) kinds.push(buttonOf({ act: "block", key: "b", name: "Block", icon: "block", labelled }));
  return kinds;
}

function buttonOf({ act, kind, key, name, icon, pressed, labelled }) {
  const button = make("button", FILLED.has(icon) ? "" : "line", iconOf({ icon, name }), ...(labelled ? [make("span", "", name)] : []));
  button.type = "button";
  Object.assign(button.dataset, { act, name, ...(kind ? { kind } : {}), ...(key ? { key: key.toUpperCase() } : {}) });
  if (pressed) button.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-label", key ? `${name} (${key.toUpperCase()})` : name);
  return button;
}

/** Shows what the viewer did with an entry, and which value can be blocked. */
export function showDone(buttons, entry) {
  for (const button of buttons) {
    if (button.hasAttribute("aria-pressed")) button.setAttribute("aria-pressed", String(entry?.did.has(button.dataset.kind) ?? false));
    if (button.dataset.act !== "block") continue;
    button.hidden = !entry?.group;
    if (entry?.group) button.setAttribute("aria-label", `Block ${entry.group.value} (B)`);
  }
}
