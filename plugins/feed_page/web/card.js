// One item as an entry of the page, and as a card to swipe. Its cover is painted when it comes near and cleared when
// it is far, to bound memory.

import { make } from "./dom.js";
import { looksOf, paint } from "./looks.js";

const CHIPS = 4;

/** Creates an entry: the served item, its appearance, and the viewer's engagements with it. */
export function entryOf(app, item, answer, elementOf) {
  const entry = {
    item,
    looks: looksOf(app, item),
    group: app.groupOf(item),
    request_id: answer.request_id,
    token: answer.token,
    stamp: answer.stamp ?? null,
    degraded: answer.degraded ?? [],
    watch_ms: 0,
    viewed: false,
    long: false,
    acted: false,
    did: new Set(), // kinds of engagement that were sent: each is sent once
    visible: false,
    element: null,
  };
  entry.element = elementOf(entry);
  return entry;
}

export function cardOf(entry) {
  const cover = make("div", "cover");
  cover.setAttribute("aria-hidden", "true");
  const card = make("article", "card", cover, make("div", "shade"), captionOf(entry));
  card.tabIndex = -1;
  card.setAttribute("aria-label", [entry.looks.title, ...chipsOf(entry).map(({ value }) => value)].join(", "));
  card.dataset.item = String(entry.item.item_id);
  return card;
}

const chipsOf = ({ looks }) => looks.values.slice(0, CHIPS);

/** The values of an item's categories, as elements. */
export function chips(entry) {
  const list = chipsOf(entry).map(({ field, value }) => {
    const chip = make("span", "chip", value);
    chip.title = field;
    return chip;
  });
  return make("span", "chips", ...list);
}

function captionOf(entry) {
  const { text, price, values, duration_ms } = entry.looks;
  const facts = [...values.slice(CHIPS).map(({ field, value }) => `${field}: ${value}`), `${Math.round(duration_ms / 1000)} s`, entry.item.item_id];
  const caption = make("button", "caption", ...(price ? [make("span", "price", price)] : []), chips(entry),
    make("span", "more", [...(text ? [text] : []), ...facts].join(" · ")));
  caption.type = "button";
  caption.setAttribute("aria-expanded", "false");
  return caption;
}

/** Paints the cover of a near card, clears a far one. */
export function dress(entry, near) {
  const cover = entry.element.firstElementChild;
  if (near && !cover.firstElementChild) paint(cover, entry.looks);
  if (!near && cover.firstElementChild) cover.replaceChildren();
}

/** Animates an icon from the tapped point, in the card's coordinates. */
export function burst(entry, icon, x, y) {
  const { element } = entry;
  const flight = make("div", "burst");
  flight.setAttribute("aria-hidden", "true");
  flight.style.left = `${x ?? element.clientWidth / 2}px`;
  flight.style.top = `${y ?? element.clientHeight / 2}px`;
  for (let i = 0; i < 7; i += 1) {
    const bit = make("span", "bit", icon.cloneNode(true));
    bit.style.setProperty("--turn", `${i * 51 - 153}deg`);
    bit.style.setProperty("--far", `${i === 0 ? 0 : 54 + 18 * (i % 3)}px`);
    flight.append(bit);
  }
  element.append(flight);
  setTimeout(() => flight.remove(), 1100);
}
