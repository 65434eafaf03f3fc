// What is really watched: the clock of the item on screen. It runs while the item fills the screen, the page
// is visible and nothing paused it; an item that leaves the screen sends one `view` with its watch time.

const SHOWN_MS = 200; // an item flung past in less, and with nothing done, was never shown
// A long view, as the server derives it from a `view` too: said here as soon as it is one, it counts sooner.
const LONG_SHARE = 0.6; // of the duration ...
const LONG_MS = 18_000; // ... or so long, whichever is less
const SKIPPED_MS = 2_000; // gone sooner, and with nothing else done, is a skip
const LONGEST_FRAME_MS = 1_000; // a longer one was a sleeping machine, not a watching person

export class Player {
  /** `report(entry, kind, watch_ms)` sends an engagement; `tick(entry, share, scene)` draws progress. */
  constructor({ report, tick }) {
    this.report = report;
    this.tick = tick;
    this.entry = null;
    this.onScreen = false;
    this.paused = false;
    this.since = null; // performance.now() when the clock last started
    this.frame = 0;
  }

  /** Another entry fills the screen (null: none does any more). The one before has left it. */
  show(entry) {
    if (entry === this.entry) return this.stay(true);
    this.leave();
    this.entry?.element.classList.remove("here", "paused");
    this.entry = entry;
    this.paused = false;
    entry?.element.classList.add("here");
    this.stay(entry !== null);
  }

  /** Whether the current entry fills the screen right now: half-way through a swipe it doesn't. */
  stay(onScreen) {
    this.onScreen = onScreen;
    this.#switch();
  }

  pause(paused) {
    this.paused = paused;
    this.#switch();
  }

  /** The entry left the screen (`moved` on by the viewer, or the page went away, which is no skip). Says so
   * once; what is watched later can still become long. */
  leave(moved = true) {
    const entry = this.entry;
    this.#stop();
    if (!entry || entry.viewed || (entry.watch_ms < SHOWN_MS && !entry.acted)) return;
    entry.viewed = true;
    const watch_ms = Math.round(entry.watch_ms);
    if (moved && !entry.acted && watch_ms < Math.min(SKIPPED_MS, entry.cover.duration_ms / 4)) {
      this.report(entry, "skip", watch_ms);
    }
    this.report(entry, "view", watch_ms);
  }

  /** The page was hidden or shown again. */
  pageVisible(visible) {
    if (!visible) this.leave(false);
    else this.#switch();
  }

  /** Starts or stops the clock by the conditions as they are now. */
  #switch() {
    const run = this.entry && this.onScreen && !this.paused && document.visibilityState === "visible";
    if (run && this.since === null) {
      this.since = performance.now();
      this.frame = requestAnimationFrame(() => this.#draw());
    } else if (!run) {
      this.#stop();
    }
    this.entry?.element.classList.toggle("playing", Boolean(run));
  }

  #stop() {
    if (this.since === null) return;
    this.#account();
    this.since = null;
    cancelAnimationFrame(this.frame);
    this.entry.element.classList.remove("playing");
  }

  #account() {
    const now = performance.now();
    this.entry.watch_ms += Math.min(LONGEST_FRAME_MS, now - this.since);
    this.since = now;
  }

  #draw() {
    if (this.since === null) return;
    this.#account();
    const { entry } = this;
    const length = entry.cover.duration_ms;
    if (!entry.long && entry.watch_ms >= Math.min(LONG_SHARE * length, LONG_MS)) {
      entry.long = true;
      this.report(entry, "long_view", Math.round(entry.watch_ms));
    }
    const share = (entry.watch_ms % length) / length;
    this.tick(entry, share, Math.min(2, Math.floor(share * 3)));
    this.frame = requestAnimationFrame(() => this.#draw());
  }
}
