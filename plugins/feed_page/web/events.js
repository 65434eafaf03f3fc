// The outbox: a queue of engagements that survives a bad network and a closed tab. Each event has an id, so that
// sending it twice is harmless. Tabs share the storage: each writes its own events, and leaves those of others there.

import { now, sendEvents, sendLast } from "./api.js";
import { read, subjectOf, userToken, write } from "./storage.js";

const BATCH = 50;
const MAX_QUEUED = 500; // the oldest are dropped beyond it, when the server is down for long
const FIRST_WAIT_MS = 400;
const LONGEST_WAIT_MS = 20_000;
const STORE = "feed.outbox";

export class Outbox extends EventTarget {
  /** Emits "accepted" (detail: events) and "state" (detail: {waiting, failing, rejected, lost}). */
  constructor() {
    super();
    this.waiting = restore().filter(isMine);
    this.sending = false;
    this.wait_ms = 0;
    this.rejected = 0;
    this.lost = 0;
    this.timer = 0;
    if (this.waiting.length) this.#later(0);
  }

  /** Adds an event (without its id) and sends it at once, together with other queued events. */
  add(event) {
    const whole = { type: "engagement", time_ms: now(), surface: "feed", event_id: uuid(), ...event };
    this.waiting.push(whole);
    const surplus = this.waiting.splice(0, Math.max(0, this.waiting.length - MAX_QUEUED));
    this.lost += surplus.length;
    this.#store(surplus);
    if (this.wait_ms === 0) this.#later(0);
    return whole;
  }

  /** Hands queued events to the browser before the page closes. They stay stored until acknowledged. */
  farewell() {
    for (let i = 0; i < this.waiting.length; i += BATCH) sendLast(this.waiting.slice(i, i + BATCH));
  }

  /** Retries now, regardless of the back-off: the network came back. */
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
      this.rejected += results.filter((result) => result.status === "rejected").length;
      this.#emit("accepted", batch.filter((_, i) => results[i]?.status !== "rejected"));
    } catch (error) {
      if (error.passing) {
        const grown = Math.min(LONGEST_WAIT_MS, this.wait_ms * 2 || FIRST_WAIT_MS);
        this.wait_ms = Math.max(error.retryAfter_ms, grown * (0.75 + 0.5 * Math.random()));
      } else {
        this.rejected += batch.length; // rejected for good: retrying is useless
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
    this.#store(batch);
  }

  #store(gone) {
    const known = new Set([...gone, ...this.waiting].map((event) => event.event_id));
    const others = restore().filter((event) => !known.has(event.event_id));
    // If storage is full or forbidden, the events are still in memory.
    write(STORE, JSON.stringify([...others, ...this.waiting].slice(-MAX_QUEUED)));
  }

  #report() {
    const { rejected, lost } = this;
    this.#emit("state", { waiting: this.waiting.length, failing: this.wait_ms > 0, rejected, lost });
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}

/** Whether this page may send an event: a user's token sends no other user's. */
function isMine(event) {
  return !userToken || String(event.user_id) === String(subjectOf(userToken));
}

function restore() {
  try {
    const events = JSON.parse(read(STORE) ?? "[]");
    return Array.isArray(events) ? events : [];
  } catch {
    return [];
  }
}

/** Random UUID; crypto.randomUUID exists on https and localhost only, not on a LAN address. */
export function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
