// Sends queued events in batches, one call at a time, until the server has answered for each. Pure: timers, randomness
// and the call are handed in.

import type { FieldError, Receipt, SentEngagement } from "./api.js";
import { batchesOf, bytesOf, firstOf, MAX_BYTES } from "./batches.js";
import { ApiError, MAX_EVENTS } from "./client.js";
import type { EventQueue } from "./queue.js";
import { type Backoff, waitMs } from "./retry.js";

export interface Timers {
  start(run: () => void, ms: number): unknown;
  stop(timer: unknown): void;
}

export interface SenderOptions {
  send: (events: SentEngagement[], keepalive: boolean) => Promise<Receipt>;
  timers: Timers;
  random: () => number;
  /** Most events of one call. */
  batch: number;
  /** Wait for more events before a batch goes out. */
  lingerMs: number;
  backoff: Backoff;
  onRejected: (event: SentEngagement, error: FieldError | null) => void;
}

/** Statuses that say the body itself is wrong. Others, such as a wrong key or a wrong address, can be mended while the
 * events wait. */
const REFUSED = new Set([400, 413, 422]);
const KEEPALIVE_BYTES = 60_000; // browsers refuse more than 64 KiB of unanswered keepalive calls

export class Sender {
  readonly #queue: EventQueue;
  readonly #options: SenderOptions;
  readonly #sending = new Set<string>(); // ids in the plain call
  readonly #leaving = new Set<string>(); // ids in keepalive calls
  #leavingBytes = 0;
  #maxCount: number;
  #failures = 0;
  #failure: unknown = null;
  #timer: unknown = null;
  #isSending = false;
  #isClosed = false;
  #idle: (() => void)[] = [];
  accepted = 0;
  rejected = 0;

  constructor(queue: EventQueue, options: SenderOptions) {
    this.#queue = queue;
    this.#options = options;
    this.#maxCount = options.batch;
    if (queue.size > 0) this.#wake(0);
  }

  /** Whether the last call failed. */
  get isFailing(): boolean {
    return this.#failures > 0;
  }

  /** Why the last call failed; null if it didn't. */
  get failure(): string | null {
    return this.isFailing ? String(this.#failure) : null;
  }

  /** Queues an event; it goes out with the next batch. */
  add(event: SentEngagement): void {
    this.#queue.add(event);
    if (this.isFailing || this.#isSending) return;
    if (this.#queue.size >= this.#options.batch) this.#wake(0);
    else if (this.#timer === null) this.#wake(this.#options.lingerMs);
  }

  /** Sends now, whatever the wait: the network came back. */
  hurry(): void {
    if (this.#queue.size > 0) this.#wake(0);
  }

  /** Sends what waits. Resolves once the queue is empty or a call failed. */
  flush(): Promise<void> {
    if (this.#queue.size === 0 || this.#isClosed) return Promise.resolve();
    this.hurry();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  /** Hands events to the browser, as many as it takes, so that they go out even if the page closes. `closes`: it does,
   * so those in the current call go again. All stay queued until they are answered. */
  leave(closes: boolean): void {
    const except = { has: (id: string) => this.#leaving.has(id) || (!closes && this.#sending.has(id)) };
    let room = KEEPALIVE_BYTES - this.#leavingBytes;
    const events: SentEngagement[] = [];
    for (const event of this.#queue.waiting(except)) {
      room -= bytesOf(event) + 1;
      if (room < 0 || events.length === MAX_EVENTS) break;
      events.push(event);
    }
    if (events.length > 0) void this.#sendLast(events);
  }

  /** Ends it. What waits stays queued. */
  close(): void {
    this.#isClosed = true;
    this.#stop();
    this.#rest();
  }

  #stop(): void {
    if (this.#timer !== null) this.#options.timers.stop(this.#timer);
    this.#timer = null;
  }

  #wake(ms: number): void {
    this.#stop();
    if (this.#isClosed) return;
    this.#timer = this.#options.timers.start(() => {
      this.#timer = null;
      void this.#sendNext();
    }, ms);
  }

  async #sendNext(): Promise<void> {
    if (this.#isSending) return;
    const waiting = firstOf(this.#queue.waiting(this.#leaving), this.#maxCount);
    const [batch] = batchesOf(waiting, this.#maxCount, MAX_BYTES);
    if (batch === undefined) return this.#rest();
    this.#isSending = true;
    for (const event of batch) this.#sending.add(event.event_id);
    let wait = 0;
    try {
      this.#settle(batch, await this.#options.send(batch, false));
      this.#failures = 0;
      this.#maxCount = this.#options.batch;
      if (this.#queue.size < this.#options.batch && this.#idle.length === 0) wait = this.#options.lingerMs;
    } catch (error) {
      wait = this.#fail(batch, error);
    }
    this.#isSending = false;
    this.#sending.clear();
    if (this.#queue.size > 0) this.#wake(wait);
    this.#rest();
  }

  async #sendLast(events: SentEngagement[]): Promise<void> {
    const bytes = bytesOf(events);
    this.#leavingBytes += bytes;
    for (const event of events) this.#leaving.add(event.event_id);
    try {
      this.#settle(events, await this.#options.send(events, true));
    } catch {
      // they stay queued
    }
    this.#leavingBytes -= bytes;
    for (const event of events) this.#leaving.delete(event.event_id);
    if (this.#queue.size > 0 && this.#timer === null && !this.#isSending) this.#wake(this.#options.lingerMs);
    this.#rest();
  }

  #settle(batch: SentEngagement[], receipt: Receipt): void {
    const answered = batch.filter((event) => this.#queue.has(event.event_id)); // two calls may have carried it
    this.#queue.remove(answered);
    const refused = new Map(
      receipt.results.filter((result) => result.status === "rejected").map((result) => [batch[result.index], result]),
    );
    for (const event of answered) {
      const result = refused.get(event);
      if (result === undefined) this.accepted += 1;
      else this.#reject(event, result.error ?? null);
    }
  }

  /** Wait before the next call. A refused body is cut in halves until the event that is to blame is alone. */
  #fail(batch: SentEngagement[], error: unknown): number {
    const status = error instanceof ApiError ? error.status : 0;
    if (REFUSED.has(status)) {
      this.#maxCount = Math.ceil(batch.length / 2);
      if (batch.length === 1) {
        this.#queue.remove(batch);
        for (const event of batch) this.#reject(event, null);
      }
      return 0;
    }
    this.#failures += 1;
    this.#failure = error;
    const asked = error instanceof ApiError ? error.retryAfterMs : 0;
    return waitMs(this.#failures, this.#options.random(), asked, this.#options.backoff);
  }

  #reject(event: SentEngagement, error: FieldError | null): void {
    this.rejected += 1;
    this.#options.onRejected(event, error);
  }

  /** Wakes those who wait for a flush, once there is nothing to wait for. */
  #rest(): void {
    if (this.#queue.size === 0) {
      this.#failures = 0; // no call follows that would end the failure, and none may wait for it
      this.#maxCount = this.#options.batch;
    }
    if (this.#queue.size > 0 && !this.isFailing && !this.#isClosed) return;
    for (const resolve of this.#idle.splice(0)) resolve();
  }
}
