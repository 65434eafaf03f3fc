// How fast the system learns from this viewer: from a swipe to the session that knows it, and on to a model
// that has learned it. Measured here, by asking until the answers have changed.

import * as api from "./api.js";

const CALM_MS = 1_500; // between looks while nothing is awaited
const EAGER_MS = [30, 40, 60, 90, 140, 200, 300]; // after a swipe: often at first, then less
const PATIENCE_MS = 20_000; // what takes longer isn't measured

export class Learning extends EventTarget {
  /** Emits "session", "status" (the answers) and "track" ({at_ms, session_ms, model_ms}, null: not yet). */
  constructor(viewer) {
    super();
    this.viewer = viewer;
    this.watching = false;
    this.track = null;
    this.session = null;
    this.status = null;
    this.looks = 0;
    this.timer = 0;
  }

  /** Looks only while somebody does: the drawer is open and the page visible. */
  watch(watching) {
    if (watching === this.watching) return;
    this.watching = watching;
    clearTimeout(this.timer);
    if (watching) this.#look();
  }

  /** Another viewer: nothing is known or awaited. */
  forget() {
    this.session = null;
    this.track = null;
  }

  /** Events of one swipe reached the server. */
  accepted(events) {
    const mine = events.filter((event) => event.user_id === this.viewer.id);
    if (!mine.length || !this.watching) return;
    const at_ms = Math.max(...mine.map((event) => event.time_ms));
    const known = this.session?.events ?? 0;
    const step = this.status?.version?.step ?? 0;
    this.track = { at_ms, known, step, session_ms: null, model_ms: null };
    this.looks = 0;
    this.#emit("track", this.track);
    clearTimeout(this.timer);
    this.#look();
  }

  get #waiting() {
    const { track } = this;
    const open = track && (track.session_ms === null || track.model_ms === null);
    return Boolean(open) && Date.now() - track.at_ms < PATIENCE_MS;
  }

  async #look() {
    const { viewer, track } = this;
    const user_id = viewer.id;
    const asked = [];
    if (!track || track.session_ms === null || !this.#waiting) asked.push(this.#lookAtSession(user_id));
    if (!track || track.session_ms !== null || this.looks % 4 === 0) asked.push(this.#lookAtStatus());
    await Promise.allSettled(asked);
    this.looks += 1;
    if (!this.watching) return;
    clearTimeout(this.timer);
    const eager = EAGER_MS[Math.min(this.looks, EAGER_MS.length - 1)];
    this.timer = setTimeout(() => this.#look(), this.#waiting ? eager : CALM_MS);
  }

  async #lookAtSession(user_id) {
    const session = await api.session(user_id);
    if (user_id !== this.viewer.id) return;
    this.session = session;
    const { track } = this;
    if (track?.session_ms === null && (session.events ?? 0) > track.known) {
      track.session_ms = Date.now() - track.at_ms;
      this.looks = 0;
      this.#emit("track", track);
    }
    this.#emit("session", session);
  }

  /** A model has learned a swipe when its newest applied step is younger than the swipe. */
  async #lookAtStatus() {
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
