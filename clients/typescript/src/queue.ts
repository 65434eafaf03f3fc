// Unsent events: bounded, in memory, and copied to a storage that survives the page. Pure: storage and time are handed in.
//
// Each event has a key of its own in the storage, so pages of one site that are open at the same time don't overwrite
// each other's events. A page sends what it finds there, at worst a second time, which the server notices.

import type { SentEngagement } from "./api.js";
import { firstOf } from "./batches.js";

/** What the queue needs of localStorage. */
export interface KeyValueStore {
  readonly length: number;
  key(index: number): string | null;
  getItem(key: string): string | null;
  setItem(key: string, value: string): void;
  removeItem(key: string): void;
}

export interface QueueOptions {
  /** Prefix of the keys. */
  name: string;
  /** The oldest events beyond it are dropped. */
  limit: number;
  /** Older events are dropped. */
  maxAgeMs: number;
  now: () => number;
}

export class EventQueue {
  readonly #events = new Map<string, SentEngagement>(); // by event_id, in the order of their times
  readonly #store: KeyValueStore | null;
  readonly #options: QueueOptions;
  readonly #userId: string;
  /** Events that were given up since the site's storage was cleared: over the limit, or too old. */
  dropped = 0;
  /** Events of this page that the storage didn't take, so that they are lost if the page closes before they are sent. */
  unstored = 0;

  /** Reads the events of a user that earlier pages, or other open ones, left. Those of other users stay stored: the
   * token of this user couldn't send them. */
  constructor(store: KeyValueStore | null, userId: string | number, options: QueueOptions) {
    this.#store = store;
    this.#userId = String(userId);
    this.#options = options;
    for (const event of this.#restored()) this.#events.set(event.event_id, event);
    this.#trim();
  }

  get size(): number {
    return this.#events.size;
  }

  has(eventId: string): boolean {
    return this.#events.has(eventId);
  }

  add(event: SentEngagement): void {
    this.#events.set(event.event_id, event);
    try {
      this.#store?.setItem(this.#keyOf(event.event_id), JSON.stringify(event));
    } catch {
      this.unstored += 1; // full or forbidden
    }
    this.#trim();
  }

  /** The events, oldest first, of which no id is in `except`. */
  *waiting(except: { has(id: string): boolean }): Iterable<SentEngagement> {
    for (const event of this.#events.values()) if (!except.has(event.event_id)) yield event;
  }

  /** Forgets events that the server has answered. */
  remove(events: Iterable<SentEngagement>): void {
    for (const { event_id } of events) {
      this.#events.delete(event_id);
      this.#forget(this.#keyOf(event_id));
    }
  }

  #restored(): SentEngagement[] {
    const events: SentEngagement[] = [];
    let gone = 0;
    for (const key of this.#keys()) {
      const event = parsed(this.#get(key));
      if (event === null || event.time_ms < this.#options.now() - this.#options.maxAgeMs) {
        this.#forget(key);
        gone += 1;
      } else if (String(event.user_id) === this.#userId) {
        events.push(event);
      }
    }
    this.dropped = Number(this.#get(this.#countKey)) || 0;
    if (gone > 0) this.#countDropped(gone);
    return events.sort((a, b) => a.time_ms - b.time_ms);
  }

  #trim(): void {
    const surplus = this.#events.size - this.#options.limit;
    if (surplus <= 0) return;
    this.remove(firstOf(this.#events.values(), surplus));
    this.#countDropped(surplus);
  }

  #countDropped(count: number): void {
    this.dropped += count;
    try {
      this.#store?.setItem(this.#countKey, String(this.dropped));
    } catch {
      // the count lasts as long as the page
    }
  }

  #keys(): string[] {
    const keys: string[] = [];
    try {
      for (let i = 0; i < (this.#store?.length ?? 0); i++) {
        const key = this.#store?.key(i);
        if (key?.startsWith(this.#keyOf(""))) keys.push(key);
      }
    } catch {
      // forbidden
    }
    return keys;
  }

  #get(key: string): string | null {
    try {
      return this.#store?.getItem(key) ?? null;
    } catch {
      return null;
    }
  }

  #forget(key: string): void {
    try {
      this.#store?.removeItem(key);
    } catch {
      // forbidden
    }
  }

  #keyOf(eventId: string): string {
    return `${this.#options.name}:event:${eventId}`;
  }

  get #countKey(): string {
    return `${this.#options.name}:dropped`;
  }
}

function parsed(text: string | null): SentEngagement | null {
  try {
    const event = JSON.parse(text ?? "null") as SentEngagement | null;
    const isEvent = typeof event?.event_id === "string" && typeof event.time_ms === "number";
    return isEvent ? event : null;
  } catch {
    return null;
  }
}
