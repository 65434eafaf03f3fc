// The outbox: engagements on their way to the server. None is lost on a bad network or a closed tab, and
// each has an id of its own, so that sending one twice does no harm.

import { beacon, sendEvents } from "./api.js";

const BATCH = 50;
const KEPT = 500; // more than that waiting means that the server is long gone: the oldest are let go
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 20_000;
const STORE = "swipe.outbox";

export class Outbox extends EventTarget {
  /** Emits "accepted" (detail: events) and "state" (detail: {waiting, failing, rejected, lost}). */
  constructor() {
    super();
    this.waiting = restore();
    this.sending = false;
    this.wait_ms = 0;
    this.rejected = 0;
    this.lost = 0;
    this.timer = 0;
    if (this.waiting.length) this.#later(0);
  }

  /** Adds an event (without its id). It goes out at once, with whatever else is waiting. */
  add(event) {
    const whole = { type: "engagement", time_ms: Date.now(), surface: "feed", event_id: uuid(), ...event };
    this.waiting.push(whole);
    this.lost += Math.max(0, this.waiting.length - KEPT);
    this.waiting = this.waiting.slice(-KEPT);
    this.#keep();
    if (this.wait_ms === 0) this.#later(0);
    return whole;
  }

  /** The page is going away: what waits is handed to the browser. It stays kept until it is answered. */
  farewell() {
    for (let i = 0; i < this.waiting.length; i += BATCH) beacon(this.waiting.slice(i, i + BATCH));
  }

  /** Tries now, whatever the back-off: the network came back. */
  hurry() {
    this.wait_ms = 0;
    if (this.waiting.length) this.#later(0);
  }

  #later(ms) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#send(), ms);
  }

  async #send() {
    if (this.sending || this.waiting.length === 0) return;
    this.sending = true;
    const batch = this.waiting.slice(0, BATCH);
    try {
      const { results = [] } = await sendEvents(batch);
      this.wait_ms = 0;
      this.#done(batch);
      this.rejected += results.filter((one) => one.status === "rejected").length;
      this.#emit("accepted", batch.filter((_, i) => results[i]?.status !== "rejected"));
    } catch (error) {
      if (error.passing) {
        const grown = Math.min(LONGEST_WAIT_MS, this.wait_ms * 2 || FIRST_WAIT_MS);
        this.wait_ms = Math.max(error.retryAfter_ms, grown * (0.75 + 0.5 * Math.random()));
      } else {
        this.rejected += batch.length; // the server will never take these: sending again can't help
        this.#done(batch);
      }
    }
    this.sending = false;
    this.#report();
    if (this.waiting.length) this.#later(this.wait_ms);
  }

  #done(batch) {
    const gone = new Set(batch.map((event) => event.event_id));
    this.waiting = this.waiting.filter((event) => !gone.has(event.event_id));
    this.#keep();
  }

  #keep() {
    try {
      localStorage.setItem(STORE, JSON.stringify(this.waiting));
    } catch {
      // storage is full or forbidden: the events are still in memory
    }
  }

  #report() {
    const { rejected, lost } = this;
    this.#emit("state", { waiting: this.waiting.length, failing: this.wait_ms > 0, rejected, lost });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

/** crypto.randomUUID exists only on https and localhost; a page opened over a LAN address needs this. */
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
