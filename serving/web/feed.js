// The list of items: what is on screen, what comes next, and when to ask for more. Each answer already uses
// the last swipes; after a strong signal the part that nobody has seen yet is asked for again.

import { recommend } from "./api.js";
import { dress, entryOf } from "./card.js";

const PAGE = 6;
const LOW = 2; // ask for the next page when so many remain
const REMEMBERED = 100; // newest items that an answer may not repeat
const SETTLE_MS = 120; // the session needs about so long to learn a signal, before asking makes sense
const STRONG = new Set(["long_view", "like", "follow", "share", "comment", "hide"]);

export class Feed extends EventTarget {
  /** Emits "current" (detail: entry or null), "answer" (the server's answer) and "state" (detail: a word). */
  constructor({ stage, player, viewer, explain }) {
    super();
    Object.assign(this, { stage, player, viewer, explain });
    this.end = stage.querySelector(".end");
    this.watcher = new IntersectionObserver((seen) => this.#seen(seen), { root: stage, threshold: [0, 0.02, 0.6] });
    this.watcher.observe(this.end);
    this.generation = 0;
    this.#clear();
  }

  get current() {
    return this.entries[this.index] ?? null;
  }

  /** Starts from nothing, e.g. for another viewer. */
  restart() {
    this.player.show(null);
    this.#clear();
    return this.ask("more");
  }

  /** Moves by so many items; the item on its way counts as where we are. */
  go(by) {
    const from = this.heading ?? this.index;
    const to = Math.max(0, Math.min(this.entries.length, from + by));
    this.heading = to;
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const target = this.entries[to]?.element ?? this.end;
    this.stage.scrollTo({ top: target.offsetTop, behavior: calm ? "instant" : "smooth" });
  }

  /** Events reached the server: a strong one makes the unseen tail out of date. */
  accepted(events) {
    if (!events.some((event) => STRONG.has(event.kind) && event.user_id === this.viewer.id)) return;
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.ask("tail"), SETTLE_MS);
  }

  /** Asks for "more" at the end, or for the unseen "tail" anew. One question at a time; tail outranks more. */
  async ask(what) {
    if (this.asking) {
      if (this.next !== "tail") this.next = what;
      return;
    }
    const { generation } = this;
    this.asking = true;
    clearTimeout(this.retrying);
    this.#state(this.entries.length ? "more" : "first");
    try {
      const answer = await recommend(this.#request(what));
      if (generation !== this.generation) return;
      this.failures = 0;
      this.#take(what, answer);
    } catch (error) {
      if (generation !== this.generation) return;
      this.#failed(what, error);
    }
    this.asking = false;
    const { next } = this;
    this.next = null;
    if (next === "tail" || (next && this.#low)) this.ask(next);
  }

  #request(what) {
    const kept = what === "tail" ? this.entries.slice(0, this.#lastKept() + 1) : this.entries;
    return {
      user_id: this.viewer.id,
      n: PAGE,
      surface: "feed",
      context: { device: matchMedia("(pointer: coarse)").matches ? "phone" : "desktop" },
      exclude_ids: kept.slice(-REMEMBERED).map((entry) => entry.item.item_id),
      candidate_ids: null,
      explain: this.explain(),
    };
  }

  /** What must stay: everything up to the item on screen, on its way, or peeking in during a swipe. */
  #lastKept() {
    const peeking = this.entries.findLastIndex((entry) => entry.visible);
    const last = this.entries.length - 1;
    return Math.max(Math.min(this.index, last), Math.min(this.heading ?? 0, last), peeking);
  }

  #take(what, answer) {
    const keep = what === "tail" ? this.#lastKept() + 1 : this.entries.length;
    const known = new Set(this.entries.slice(0, keep).slice(-REMEMBERED).map((entry) => entry.item.item_id));
    const fresh = (answer.items ?? []).filter((item) => !known.has(item.item_id) && known.add(item.item_id));
    this.dispatchEvent(new CustomEvent("answer", { detail: answer }));
    if (fresh.length === 0) return what === "tail" ? this.#state("ready") : this.#empty();
    for (const old of this.entries.splice(keep)) {
      this.watcher.unobserve(old.element);
      old.element.remove();
    }
    const { atEnd } = this;
    for (const item of fresh) {
      const entry = entryOf(item, answer);
      this.entries.push(entry);
      this.stage.insertBefore(entry.element, this.end);
      this.watcher.observe(entry.element);
    }
    if (atEnd) this.stage.scrollTo({ top: this.entries[keep].element.offsetTop, behavior: "instant" });
    this.#dress();
    this.#state("ready");
  }

  #empty() {
    this.#state("empty");
    this.retrying = setTimeout(() => this.ask("more"), 5_000);
  }

  #failed(what, error) {
    this.failures += 1;
    this.#state("failed");
    const wait_ms = Math.max(error.retryAfter_ms ?? 0, Math.min(15_000, 700 * 2 ** this.failures));
    this.retrying = setTimeout(() => this.ask(what), wait_ms);
  }

  #seen(changes) {
    for (const { target, intersectionRatio: ratio } of changes) {
      if (target === this.end) {
        // The news may be old: items may have come since, and then the end card is off the screen.
        this.atEnd = ratio >= 0.6 && Math.abs(this.stage.scrollTop - target.offsetTop) < target.clientHeight / 2;
        if (this.atEnd) this.#arrive(this.entries.length);
        continue;
      }
      const at = this.entries.findIndex((entry) => entry.element === target);
      if (at < 0) continue;
      this.entries[at].visible = ratio >= 0.02;
      if (ratio >= 0.6) this.#arrive(at);
      else if (at === this.index) this.player.stay(false);
    }
  }

  #arrive(at) {
    this.index = at;
    if (this.heading === at) this.heading = null;
    this.player.show(this.current);
    if (this.current !== this.told) this.dispatchEvent(new CustomEvent("current", { detail: this.current }));
    this.told = this.current;
    this.#dress();
    if (this.#low) this.ask("more");
  }

  get #low() {
    return this.entries.length - this.index - 1 <= LOW;
  }

  #dress() {
    const here = Math.max(0, this.index);
    this.entries.forEach((entry, i) => dress(entry, i >= here - 1 && i <= here + 2));
  }

  #clear() {
    this.generation += 1;
    for (const entry of this.entries ?? []) {
      this.watcher.unobserve(entry.element);
      entry.element.remove();
    }
    this.entries = [];
    this.index = -1; // of the item on screen; entries.length at the end card
    this.told = null; // the entry that "current" last named
    this.heading = null; // where a key or button sent us and we haven't arrived
    this.atEnd = true;
    this.asking = false;
    this.next = null;
    this.failures = 0;
    clearTimeout(this.retrying);
    clearTimeout(this.settling);
  }

  #state(word) {
    this.end.dataset.state = word;
    this.stage.setAttribute("aria-busy", String(word === "first" || word === "more"));
    this.dispatchEvent(new CustomEvent("state", { detail: word }));
  }
}
