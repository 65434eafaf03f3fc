// Measures freshness for this viewer: time from a swipe until the session has it, and until a served model has
// learned it, by polling.

import * as api from "./api.js";

const IDLE_MS = 1_500; // polling interval when nothing is pending
const EAGER_MS = [30, 40, 60, 90, 140, 200, 300]; // polling intervals after a swipe
const PATIENCE_MS = 20_000; // longer delays aren't measured

export class Learning extends EventTarget {
  /** Emits "session", "status" (the answers) and "track" ({at_ms, session_ms, model_ms}, null: not yet). */
  constructor(viewer) {
    super();
    this.viewer = viewer;
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

  /** Handles the acknowledged events of one swipe. */
  accepted(events) {
    const own = events.filter((event) => event.user_id === this.viewer.id);
    if (!own.length || !this.watching) return;
    const at_ms = Math.max(...own.map((event) => event.time_ms));
    const count = this.session?.events ?? 0;
    const step = this.status?.version?.step ?? 0;
    this.track = { at_ms, count, step, session_ms: null, model_ms: null };
    this.polls = 0;
    this.#emit("track", this.track);
    clearTimeout(this.timer);
    this.#poll();
  }

  get #waiting() {
    const { track } = this;
    const open = track && (track.session_ms === null || track.model_ms === null);
    return Boolean(open) && Date.now() - track.at_ms < PATIENCE_MS;
  }

  async #poll() {
    const { viewer, track } = this;
    const user_id = viewer.id;
    const requests = [];
    if (!track || track.session_ms === null || !this.#waiting) requests.push(this.#pollSession(user_id));
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
      track.session_ms = Date.now() - track.at_ms;
      this.polls = 0;
      this.#emit("track", track);
    }
    this.#emit("session", session);
  }

  /** A model has learned a swipe once its newest step is younger than the swipe. */
  async #pollStatus() {
    const status = await api.status();
    const now = Date.now();
    this.status = { ...status, seen_ms: now };
    const { track } = this;
    const { age_ms = null, version } = status;
    const newer = age_ms !== null && (version?.step ?? 0) > (track?.step ?? 0);
    if (track?.model_ms === null && newer && now - age_ms >= track.at_ms) {
      track.model_ms = now - track.at_ms;
      this.#emit("track", track);
    }
    this.#emit("status", this.status);
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
