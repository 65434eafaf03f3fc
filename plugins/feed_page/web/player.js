// Measures watch time of the item on screen: while it fills the screen, the page is visible and nothing is paused. An
// item that leaves the screen sends one `view` with its watch time.

const SHOWN_MS = 200; // an item on screen for less, without an engagement, doesn't count as shown
// A long view. The server derives it from a `view` too; sent immediately, it takes effect sooner.
const LONG_SHARE = 0.6; // of the duration ...
const LONG_MS = 18_000; // ... or this long, whichever is less
const SKIPPED_MS = 2_000; // a shorter view without an engagement is a skip
const LONGEST_FRAME_MS = 1_000; // a longer one means that the machine slept

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

  /** Switches to the entry that fills the screen (null: none); the previous one has left it. */
  show(entry) {
    if (entry === this.entry) return this.stay(true);
    this.leave();
    this.entry?.element.classList.remove("here", "paused");
    this.entry = entry;
    this.paused = false;
    entry?.element.classList.add("here");
    this.stay(entry !== null);
  }

  /** Sets whether the current entry fills the screen; it doesn't half-way through a swipe. */
  stay(onScreen) {
    this.onScreen = onScreen;
    this.#switch();
  }

  pause(paused) {
    this.paused = paused;
    this.#switch();
  }

  /** Reports the view of an entry that left the screen, once; it may still become a long view later. `moved`: by the
   * viewer; a closed page is no skip. */
  leave(moved = true) {
    const entry = this.entry;
    this.#stop();
    if (!entry || entry.viewed || (entry.watch_ms < SHOWN_MS && !entry.acted)) return;
    entry.viewed = true;
    const watch_ms = Math.round(entry.watch_ms);
    if (moved && !entry.acted && watch_ms < Math.min(SKIPPED_MS, entry.looks.duration_ms / 4)) {
      this.report(entry, "skip", watch_ms);
    }
    this.report(entry, "view", watch_ms);
  }

  /** Handles a change of the page's visibility. */
  pageVisible(visible) {
    if (!visible) this.leave(false);
    else this.#switch();
  }

  /** Starts or stops the clock according to the current conditions. */
  #switch() {
    const run = this.entry && this.onScreen && !this.paused && document.visibilityState === "visible";
    if (run && this.since === null) {
      this.since = performance.now();
      this.frame = requestAnimationFrame(() => this.#draw());
    } else if (!run) {
      this.#stop();
    }
    this.entry?.element.classList.toggle("playing", Boolean(run));
    this.#film(run);
  }

  #stop() {
    if (this.since === null) return;
    this.#account();
    this.since = null;
    cancelAnimationFrame(this.frame);
    this.entry.element.classList.remove("playing");
    this.#film(false);
  }

  /** Plays or stops the item's own video, if it has one. */
  #film(run) {
    const video = this.entry?.element.querySelector("video");
    if (run) video?.play().catch(() => {}); // refused, or stopped before it began
    else video?.pause();
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
    const length = entry.looks.duration_ms;
    if (!entry.long && entry.watch_ms >= Math.min(LONG_SHARE * length, LONG_MS)) {
      entry.long = true;
      this.report(entry, "long_view", Math.round(entry.watch_ms));
    }
    const share = (entry.watch_ms % length) / length;
    this.tick(entry, share, Math.min(2, Math.floor(share * 3)));
    this.frame = requestAnimationFrame(() => this.#draw());
  }
}
