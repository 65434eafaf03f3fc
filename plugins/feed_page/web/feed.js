// Items to swipe: which one is on screen, which follow, and when to request more. Each answer reflects the latest
// swipes; after a strong signal the unseen tail is requested again.

import { recommend } from "./api.js";
import { cardOf, dress, entryOf } from "./card.js";
import { reducedMotion } from "./dom.js";

const PAGE = 6;
const LOW = 2; // remaining items at which the next page is requested
const EXCLUDED = 100; // newest items that an answer must not repeat
const SETTLE_MS = 120; // about the time until the session reflects a signal

export class Feed extends EventTarget {
  /** Emits "current" (detail: entry or null), "answer" (the server's answer) and "state" (detail: the state's name). */
  constructor({ app, stage, player, viewer, explain }) {
    super();
    Object.assign(this, { app, stage, player, viewer, explain });
    this.end = stage.querySelector(".end");
    this.watcher = new IntersectionObserver((seen) => this.#seen(seen), { root: stage, threshold: [0, 0.02, 0.6] });
    this.watcher.observe(this.end);
    this.generation = 0;
    this.#clear();
  }

  get current() {
    return this.entries[this.index] ?? null;
  }

  /** Clears the feed and starts anew, e.g. for another viewer. */
  restart() {
    this.player.show(null);
    this.#clear();
    return this.ask("more");
  }

  /** Moves by a number of items, relative to the target of an unfinished move. */
  go(by) {
    const from = this.heading ?? this.index;
    const to = Math.max(0, Math.min(this.entries.length, from + by));
    this.heading = to;
    const target = this.entries[to]?.element ?? this.end;
    this.stage.scrollTo({ top: target.offsetTop, behavior: reducedMotion() ? "instant" : "smooth" });
  }

  /** Moves to an entry, if it is still there. */
  show(entry) {
    if (this.entries.includes(entry)) this.go(this.entries.indexOf(entry) - (this.heading ?? this.index));
  }

  /** Handles acknowledged events: a strong one outdates the unseen tail. */
  accepted(events) {
    if (events.some((event) => this.app.strong.has(event.kind) && event.user_id === this.viewer.id)) this.outdate();
  }

  /** Requests the unseen tail again, once the session has what the viewer did. */
  outdate() {
    clearTimeout(this.settling);
    this.settling = setTimeout(() => this.ask("tail"), SETTLE_MS);
  }

  /** Requests "more" items, or the unseen "tail" again. One request at a time; tail takes precedence. */
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
    const entries = what === "tail" ? this.entries.slice(0, this.#lastKept() + 1) : this.entries;
    return {
      user_id: this.viewer.id,
      n: PAGE,
      surface: "feed",
      context: { device: matchMedia("(pointer: coarse)").matches ? "phone" : "desktop" },
      exclude_ids: entries.slice(-EXCLUDED).map((entry) => entry.item.item_id),
      candidate_ids: null,
      explain: this.explain(),
    };
  }

  /** Index of the last item to keep: on screen, target of a move, or partly visible during a swipe. */
  #lastKept() {
    const peeking = this.entries.findLastIndex((entry) => entry.visible);
    const last = this.entries.length - 1;
    return Math.max(Math.min(this.index, last), Math.min(this.heading ?? 0, last), peeking);
  }

  #take(what, answer) {
    const keep = what === "tail" ? this.#lastKept() + 1 : this.entries.length;
    const ids = new Set(this.entries.slice(0, keep).slice(-EXCLUDED).map((entry) => entry.item.item_id));
    const fresh = (answer.items ?? []).filter((item) => !ids.has(item.item_id) && ids.add(item.item_id));
    this.dispatchEvent(new CustomEvent("answer", { detail: answer }));
    if (fresh.length === 0) return this.#low ? this.#empty() : this.#state("ready");
    for (const old of this.entries.splice(keep)) {
      this.watcher.unobserve(old.element);
      old.element.remove();
    }
    const { atEnd } = this;
    for (const item of fresh) {
      const entry = entryOf(this.app, item, answer, cardOf);
      entry.element.inert = true; // until it is on screen
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
        // The notification may be outdated: items may have been added since, and the end card is off screen.
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
    const left = this.current?.element;
    this.index = at;
    if (this.heading === at) this.heading = null;
    this.player.show(this.current);
    // Only the card on screen takes the focus: else Tab would scroll to the next one, which is a swipe.
    for (const element of [...this.entries.map((entry) => entry.element), this.end]) {
      element.inert = element !== (this.current?.element ?? this.end);
    }
    if (left !== this.current?.element && left?.contains(document.activeElement)) this.stage.focus({ preventScroll: true });
    if (this.current !== this.announced) this.dispatchEvent(new CustomEvent("current", { detail: this.current }));
    this.announced = this.current;
    this.#dress();
    if (this.#low) this.ask("more");
  }

  get #low() {
    return this.entries.length - this.index - 1 <= LOW;
  }

  #dress() {
    const index = Math.max(0, this.index);
    this.entries.forEach((entry, i) => dress(entry, i >= index - 1 && i <= index + 2));
  }

  #clear() {
    this.generation += 1;
    for (const entry of this.entries ?? []) {
      this.watcher.unobserve(entry.element);
      entry.element.remove();
    }
    this.entries = [];
    this.index = -1; // of the item on screen; entries.length for the end card
    this.announced = null; // the entry of the last "current" event
    this.heading = null; // target of an unfinished move by key or button
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
