// The drawer: the session's topics, freshness of the last engagement, the serving model, and why the item is here.

import { now } from "./api.js";
import { Bars } from "./bars.js";
import { make, reducedMotion } from "./dom.js";
import { hueOf, initials } from "./looks.js";
import { why } from "./why.js";

const TOPICS = 7;
const STRIP = 14;
const MARKS = { bad: "×", good: "+", long: "+", skip: "»", view: "·" };

export class Drawer {
  constructor(app, element) {
    Object.assign(this, { app, element });
    this.part = (name) => element.querySelector(`[data-part="${name}"]`);
    this.bars = new Bars(this.part("topics"));
    this.known = new Map(); // value → looks of an item with it
    this.entry = null;
    this.status = null;
    this.track = null;
    this.part("way").dataset.learns = String(app.shown === "view"); // elsewhere after minutes: not shown
    setInterval(() => this.#tick(), 100);
  }

  viewer(id) {
    this.part("viewer-id").textContent = id;
    this.part("viewer-face").style.setProperty("--hue", String(hueOf(id)));
    this.bars.show([]);
    this.part("strip").replaceChildren();
    this.session({ topics: [], events: 0 });
    this.learned(null);
  }

  /** Shows the session's topics by weight. */
  session({ topics = [], events = 0 }) {
    const rows = [...topics]
      .filter((topic) => Number.isFinite(topic.weight) && topic.weight !== 0)
      .sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight))
      .slice(0, TOPICS)
      .sort((a, b) => b.weight - a.weight)
      .map(({ tag, weight }) => ({ key: String(tag), label: String(tag), icon: this.#emblem(tag), hue: this.#hue(tag), weight }));
    this.bars.show(rows);
    this.part("nothing").hidden = rows.length > 0;
    this.part("events").textContent = `${count(events)} ${events === 1 ? "event" : "events"}`;
  }

  /** Adds an item that left the screen to the strip, with its outcome. */
  left(entry) {
    const done = this.app.buttons.filter(({ kind }) => entry.did.has(kind));
    const word = done.some(({ isNegative }) => isNegative) ? "bad" : done.length ? "good"
      : entry.long ? "long" : this.app.layout === "swipe" && entry.watch_ms < 2000 ? "skip" : "view";
    const picture = make("li", "", entry.looks.emblem);
    picture.style.setProperty("--hue", String(entry.looks.hue));
    picture.dataset.mark = MARKS[word];
    picture.dataset.word = word;
    picture.title = [entry.looks.title, ...done.map(({ name }) => name)].join(": ");
    const strip = this.part("strip");
    strip.prepend(picture);
    while (strip.childElementCount > STRIP) strip.lastElementChild.remove();
  }

  model(status) {
    const step = this.status?.version?.step;
    this.status = status;
    const { line = "–", epoch = 0 } = status.version ?? {};
    this.part("line").textContent = line;
    this.part("epoch").textContent = count(epoch);
    this.part("step").textContent = count(status.version?.step ?? 0);
    if (step !== undefined && step !== status.version?.step) pulse(this.part("step"));
    this.part("examples").textContent = rate(status.examples_per_s);
    this.part("rate").textContent = rate(status.events_per_s);
    this.part("items").textContent = count(status.items ?? 0);
    const typical = [status.click_to_session_ms, status.click_to_served_ms].map(time);
    this.part("usual").textContent = `Usually ${typical[0]} to the session, ${typical[1]} to the model`;
    this.part("usual").hidden = typical.includes("–");
    this.#tick();
  }

  /** Shows the freshness of the last swipe: {at_ms, session_ms, model_ms}, or null without one. */
  learned(track) {
    this.track = track;
    this.#tick();
  }

  /** Shows why an item was recommended. */
  explain(entry) {
    this.entry = entry;
    for (const { value } of entry?.looks.values ?? []) this.known.set(value, entry.looks);
    this.part("why").replaceChildren(...(entry ? why(this.app, entry) : []));
    this.#tick();
  }

  #emblem(tag) {
    return this.known.get(String(tag))?.emblem ?? initials(tag);
  }

  #hue(tag) {
    return this.known.get(String(tag))?.hue ?? hueOf(tag);
  }

  #tick() {
    const { track, status } = this;
    const way = this.part("way");
    const elapsed_ms = track ? now() - track.at_ms : 0;
    const late = elapsed_ms > 20_000;
    way.dataset.reached = !track ? "none" : track.model_ms !== null ? "model" : track.session_ms !== null ? "session" : "event";
    this.part("to-session").textContent = reached(track, track?.session_ms, elapsed_ms, late);
    this.part("to-model").textContent = reached(track, track?.model_ms, elapsed_ms, late);
    if (!status) return;
    this.part("age").textContent = time(Number.isFinite(status.age_ms) ? status.age_ms + Date.now() - status.seen_ms : null);
    const behind = (status.version?.step ?? 0) - (this.entry?.stamp?.step ?? Infinity);
    this.part("since").textContent =
      behind > 0 ? `${count(behind)} ${behind === 1 ? "step" : "steps"} learned since this item was picked` : "";
  }
}

function reached(track, value, elapsed_ms, late) {
  if (!track) return "–";
  if (value !== null && value !== undefined) return time(value);
  return late ? "not seen" : `${time(elapsed_ms)}…`;
}

function pulse(element) {
  if (reducedMotion()) return;
  element.animate([{ color: "var(--glow)", offset: 0.5 }], { duration: 700 }); // from its own color and back
}

export const count = (n) => Math.round(n).toLocaleString("en");

function rate(n) {
  return n === undefined || n === null ? "–" : n >= 100 ? count(n) : n.toFixed(1);
}

/** Formats milliseconds: 84 ms, 1.2 s, 3 min. */
export function time(ms) {
  if (ms === undefined || ms === null || !Number.isFinite(ms)) return "–";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  return ms < 5_400_000 ? `${Math.round(ms / 60_000)} min` : `${(ms / 3_600_000).toFixed(1)} h`;
}
