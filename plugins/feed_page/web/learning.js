// Measures freshness for this viewer: time from an engagement until the session has it, and until a served model has
// learned the view of its item, by polling.

import * as api from "./api.js";

const IDLE_MS = 1_500; // polling interval when nothing is pending
const EAGER_MS = [30, 40, 60, 90, 140, 200, 300]; // polling intervals after a swipe
const PATIENCE_MS = 20_000; // longer delays aren't measured

export class Learning extends EventTarget {
  /** Emits "session", "status" (the answers) and "track" ({at_ms, session_ms, model_ms}, null: not yet). */
  constructor({ viewer, views }) {
    super();
    Object.assign(this, { viewer, views });
    this.watching = false;
    this.track = null;
    this.session = null;
    this.status = null;
    this.polls = 0;
    this.timer = 0;
  }

  /** Polls only while the drawer is open and the page visible. */
  watch(watching) {
    if (watching === this.watching) return;
    this.watching = watching;
    clearTimeout(this.timer);
    if (watching) this.#poll();
  }

  /** Resets for another viewer. */
  forget() {
    this.session = null;
    this.track = null;
  }

  /** Handles acknowledged events. Where views are sent, one that has ended is what the model learns from. */
  accepted(events) {
    const fits = (event) => (this.views ? event.kind === "view" : event.kind !== "seen") && event.user_id === this.viewer.id;
    const last = events.findLast(fits);
    if (!last || !this.watching) return;
    const count = this.session?.events ?? 0;
    this.track = { at_ms: last.time_ms, item_id: last.item_id, count, session_ms: null, model_ms: null };
    this.polls = 0;
    this.#emit("track", this.track);
    clearTimeout(this.timer);
    this.#poll();
  }

  get #waiting() {
    const { track } = this;
    const open = track && (track.session_ms === null || (this.views && track.model_ms === null));
    return Boolean(open) && api.now() - track.at_ms < PATIENCE_MS;
  }

  async #poll() {
    const { viewer, track } = this;
    const user_id = viewer.id;
    const requests = [this.#pollSession(user_id)];
    if (!track || track.session_ms !== null || this.polls % 4 === 0) requests.push(this.#pollStatus());
    await Promise.allSettled(requests);
    this.polls += 1;
    if (!this.watching) return;
    clearTimeout(this.timer);
    const eager = EAGER_MS[Math.min(this.polls, EAGER_MS.length - 1)];
    this.timer = setTimeout(() => this.#poll(), this.#waiting ? eager : IDLE_MS);
  }

  async #pollSession(user_id) {
    const session = await api.session(user_id);
    if (user_id !== this.viewer.id) return;
    this.session = session;
    const { track } = this;
    if (track?.session_ms === null && (session.events ?? 0) > track.count) {
      track.session_ms = api.now() - track.at_ms;
      this.polls = 0;
      this.#emit("track", track);
    }
    const swiped = session.recent?.find((entry) => String(entry.item_id) === String(track?.item_id));
    if (track?.model_ms === null && swiped?.learned) {
      track.model_ms = api.now() - track.at_ms;
      this.#emit("track", track);
    }
    this.#emit("session", session);
  }

  async #pollStatus() {
    const status = await api.status();
    this.status = { ...status, seen_ms: Date.now() };
    this.#emit("status", this.status);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
