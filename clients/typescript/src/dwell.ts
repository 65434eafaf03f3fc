// Measures how long things are visible. Pure: the time is handed in.

export class DwellMeter<K> {
  readonly #since = new Map<K, number>(); // visible ones, in ms
  readonly #minMs: number;
  readonly #maxMs: number;
  #isPaused = false;

  /** `minMs`: a shorter stretch is no view. `maxMs`: a longer one counts as much, since nobody may be looking. */
  constructor(minMs: number, maxMs: number) {
    this.#minMs = minMs;
    this.#maxMs = maxMs;
  }

  /** A thing became visible. */
  show(key: K, nowMs: number): void {
    if (!this.#since.has(key)) this.#since.set(key, nowMs);
  }

  /** A thing is visible no more: milliseconds that it was; null if that was no view. */
  hide(key: K, nowMs: number): number | null {
    const since = this.#since.get(key);
    this.#since.delete(key);
    return since === undefined || this.#isPaused ? null : this.#dwell(since, nowMs);
  }

  /** The page is hidden: ends the stretches of all visible things, and returns those that are views. */
  pause(nowMs: number): [K, number][] {
    if (this.#isPaused) return [];
    this.#isPaused = true;
    const views: [K, number][] = [];
    for (const [key, since] of this.#since) {
      const dwell = this.#dwell(since, nowMs);
      if (dwell !== null) views.push([key, dwell]);
    }
    return views;
  }

  /** The page is back: things that are still visible begin a new stretch. */
  resume(nowMs: number): void {
    if (!this.#isPaused) return;
    this.#isPaused = false;
    for (const key of this.#since.keys()) this.#since.set(key, nowMs);
  }

  #dwell(sinceMs: number, nowMs: number): number | null {
    const dwellMs = nowMs - sinceMs;
    return dwellMs < this.#minMs ? null : Math.round(Math.min(dwellMs, this.#maxMs));
  }
}
