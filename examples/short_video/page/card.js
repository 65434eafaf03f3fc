// One item of the feed as an element. Its cover is painted when it comes near and cleared when it is far, to bound
// memory.

import { coverOf, paint } from "./covers.js";
import { make } from "./dom.js";
import { handleOf } from "./names.js";
import { topicOfTag } from "./topics.js";

/** Creates an entry: the served item, its appearance, and the viewer's engagements with it. */
export function entryOf(item, answer) {
  const entry = {
    item,
    cover: coverOf(item),
    handle: handleOf(item.fields?.author),
    request_id: answer.request_id,
    token: answer.token,
    stamp: answer.stamp ?? null,
    degraded: answer.degraded ?? [],
    watch_ms: 0,
    viewed: false,
    long: false,
    acted: false,
    did: new Set(), // like, follow, share, hide, click: each is sent once
    visible: false,
    element: null,
  };
  entry.element = cardOf(entry);
  return entry;
}

function cardOf(entry) {
  const cover = make("div", "cover");
  cover.setAttribute("aria-hidden", "true");
  const card = make("article", "card", cover, make("div", "shade"), captionOf(entry));
  card.tabIndex = -1;
  card.setAttribute("aria-label", `${entry.cover.title}, by ${entry.handle}, ${entry.cover.topic.name}`);
  card.dataset.item = String(entry.item.item_id);
  return card;
}

function captionOf(entry) {
  const chips = tagsOf(entry).slice(0, 4).map((tag) => {
    const topic = topicOfTag(tag);
    const chip = make("span", "chip", `${topic.emoji[0]} ${topic.name}`);
    chip.title = `tag ${tag}`;
    return chip;
  });
  const seconds = Math.round(entry.cover.duration_ms / 1000);
  const more = `${entry.cover.title} · ${seconds} s · item ${entry.item.item_id}`;
  const caption = make("button", "caption", make("span", "who", `@${entry.handle}`),
    make("span", "chips", ...chips), make("span", "more", more));
  caption.type = "button";
  caption.setAttribute("aria-expanded", "false");
  return caption;
}

function tagsOf(entry) {
  const { topic, tags } = entry.item.fields ?? {};
  const list = Array.isArray(tags) ? tags : tags != null ? [tags] : [];
  const all = topic != null ? [topic, ...list] : list;
  return all.length ? [...new Set(all.map(String))] : [entry.cover.topic.name];
}

/** Paints the cover of a near card, clears a far one. */
export function dress(entry, near) {
  const cover = entry.element.firstElementChild;
  if (near && !cover.firstElementChild) paint(cover, entry.cover);
  if (!near && cover.firstElementChild) cover.replaceChildren();
}

/** Animates hearts from the tapped point, in the card's coordinates. */
export function burst(entry, x, y, glyph = "❤️") {
  const { element } = entry;
  const flight = make("div", "burst");
  flight.setAttribute("aria-hidden", "true");
  flight.style.left = `${x ?? element.clientWidth / 2}px`;
  flight.style.top = `${y ?? element.clientHeight / 2}px`;
  for (let i = 0; i < 7; i += 1) {
    const bit = make("span", "bit", glyph);
    bit.style.setProperty("--turn", `${i * 51 - 153}deg`);
    bit.style.setProperty("--far", `${i === 0 ? 0 : 54 + 18 * (i % 3)}px`);
    flight.append(bit);
  }
  element.append(flight);
  setTimeout(() => flight.remove(), 1100);
}
