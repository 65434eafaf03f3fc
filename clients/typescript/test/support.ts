// A clock with timers, a storage and a source of numbers that the tests move by hand.

import type { SentEngagement } from "../src/api.js";
import type { KeyValueStore } from "../src/queue.js";
import type { Timers } from "../src/sender.js";

export class FakeClock implements Timers {
  nowMs = 1_800_000_000_000;
  readonly #due = new Map<number, { atMs: number; run: () => void }>();
  #made = 0;

  start(run: () => void, ms: number): unknown {
    this.#made += 1;
    this.#due.set(this.#made, { atMs: this.nowMs + ms, run });
    return this.#made;
  }

  stop(timer: unknown): void {
    this.#due.delete(timer as number);
  }

  /** Wait of the next timer; null without one. */
  get nextMs(): number | null {
    const times = Array.from(this.#due.values(), (each) => each.atMs - this.nowMs);
    return times.length > 0 ? Math.min(...times) : null;
  }

  /** Runs what falls due, and whatever promises that starts. */
  async advance(ms: number): Promise<void> {
    const until = this.nowMs + ms;
    for (;;) {
      await settled();
      const [next] = Array.from(this.#due).filter(([, each]) => each.atMs <= until).sort((a, b) => a[1].atMs - b[1].atMs);
      if (next === undefined) break;
      this.#due.delete(next[0]);
      this.nowMs = Math.max(this.nowMs, next[1].atMs);
      next[1].run();
    }
    this.nowMs = until;
  }
}

/** Lets promises that nothing holds up run to their ends. */
export async function settled(): Promise<void> {
  await new Promise<void>((resolve) => setImmediate(resolve));
}

export class MemoryStore implements KeyValueStore {
  readonly values = new Map<string, string>();
  isFull = false;

  get length(): number {
    return this.values.size;
  }

  key(index: number): string | null {
    return Array.from(this.values.keys())[index] ?? null;
  }

  getItem(key: string): string | null {
    return this.values.get(key) ?? null;
  }

  setItem(key: string, value: string): void {
    if (this.isFull) throw new Error("QuotaExceededError");
    this.values.set(key, value);
  }

  removeItem(key: string): void {
    this.values.delete(key);
  }
}

/** Numbers in [0, 1), the same each time (mulberry32). */
export function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

export function viewOf(eventId: string, timeMs: number, userId = "u1"): SentEngagement {
  return {
    type: "engagement", event_id: eventId, time_ms: timeMs, user_id: userId, item_id: "v1", request_id: "r1",
    kind: "view", watch_ms: 900,
  };
}
