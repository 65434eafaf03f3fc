// Client of the HTTP API, for browsers and Node 20: a method for most routes.
//
// Writes are retried with growing, random waits: events have an id before the first attempt, and the other writes are
// idempotent. A list isn't retried unless asked for, since each one is an impression.

import type {
  Engagement, Fields, Filters, Id, Item, ItemList, Preference, RankRequest, Receipt, Recommendations, RecommendRequest, Result,
  SentEngagement, Session, Status, User,
} from "./api.js";
import { batchesOf, MAX_BYTES, newId } from "./batches.js";
import { type Backoff, isPassing, retryAfterMs, waitMs } from "./retry.js";

/** Most events, items or users, and bytes of JSON, of one call. */
export const MAX_EVENTS = 500;
const MAX_ROWS = 1_000;
const MAX_PREFERENCES = 100;
const MAX_TOKENS = 1_000; // of the newest lists
const LONGEST_ASKED_MS = 60_000; // the wait for a daily quota can be hours: the caller decides
const SKEW_MS = 2_000; // the server's Date has whole seconds
const QUICK_MS = 1_000; // the Date of a slower answer says little about the time at which it arrives
const COMING = 4; // calls of `key` that may be under way

/** API key or user token; a function is asked before each call, so that it can renew a token. */
export type Key = string | (() => string | undefined | Promise<string | undefined>);

export interface ClientOptions {
  /** Address of the server; default: the page's own. */
  url?: string;
  key?: Key;
  /** Of one attempt, with the body of its answer. */
  timeoutMs?: number;
  /** Of a write. */
  attempts?: number;
  backoff?: Backoff;
  fetch?: typeof fetch;
  now?: () => number;
  random?: () => number;
  sleep?: (ms: number) => Promise<void>;
}

/** Options of one call. */
export interface CallOptions {
  signal?: AbortSignal;
  timeoutMs?: number;
  attempts?: number;
}

interface Call extends CallOptions {
  body?: unknown;
  keepalive?: boolean;
}

/** A call failed. `status` is 0 without an answer; `passing`: a retry may succeed. */
export class ApiError extends Error {
  override readonly name = "ApiError";
  readonly passing: boolean;

  constructor(
    readonly method: string, readonly path: string, readonly status: number, readonly detail: string,
    readonly retryAfterMs = 0,
  ) {
    const passing = isPassing(status);
    super(
      `${method} ${path}: ${status ? `status ${status}` : "no answer"} (${detail.slice(0, 300)}), expected a 2xx answer; ` +
        (passing ? "try again later" : "trying again won't help"),
    );
    this.passing = passing;
  }
}

export class Client {
  readonly #options: ClientOptions;
  readonly #fetch: typeof fetch;
  readonly #tokens = new Map<string, string>(); // by request_id
  #key: string | undefined;
  #coming: Promise<string | undefined>[] = []; // keys that `key` hasn't given yet
  #skewMs = 0;

  constructor(options: ClientOptions = {}) {
    this.#options = options;
    this.#fetch = options.fetch ?? ((input, init) => fetch(input, init));
    if (typeof options.key === "string") this.#key = options.key;
  }

  /** Items for a user, ranked by the newest model. */
  recommend<F = Fields>(request: RecommendRequest | RankRequest, options: CallOptions = {}): Promise<Recommendations<F>> {
    return this.#list("/v1/recommend", request, options);
  }

  /** The caller's candidates, best first: all of them, or the best 100, unless `n` says otherwise. */
  rank<F = Fields>(request: RankRequest, options: CallOptions = {}): Promise<Recommendations<F>> {
    return this.#list("/v1/rank", request, options);
  }

  /** Items that are the same for all viewers. */
  items<F = Fields>(
    order: "popular" | "latest" | "trending", query: { n?: number; filters?: Filters } = {}, options: CallOptions = {},
  ): Promise<ItemList<F>> {
    return this.#ask("GET", `/v1/${order}?${searchOf(query)}`, options);
  }

  /** Items nearest to one. */
  similar<F = Fields>(
    itemId: Id, query: { n?: number; filters?: Filters } = {}, options: CallOptions = {},
  ): Promise<ItemList<F>> {
    return this.#ask("GET", `/v1/items/${encodeURIComponent(itemId)}/similar?${searchOf(query)}`, options);
  }

  /** Sends engagements in batches. Rejected events don't throw: see the receipt. Throws ApiError when it gives up;
   * earlier batches stay accepted, and `prepare` keeps the ids the same for another attempt. */
  sendEvents(events: Iterable<Engagement>, options: CallOptions = {}): Promise<Receipt> {
    const prepared = Array.from(events, (event) => this.prepare(event));
    return this.#inBatches("events", prepared, MAX_EVENTS, options);
  }

  /** Sends one batch once. `keepalive`: it goes out even if the page closes; browsers allow 64 KiB of these. */
  sendBatch(events: SentEngagement[], keepalive = false): Promise<Receipt> {
    return this.#ask<Receipt>("POST", "/v1/events", { body: { events }, attempts: 1, keepalive });
  }

  /** An event as it is sent: with an id, the server's time, and the token of its list if this client got that. */
  prepare(event: Engagement): SentEngagement {
    const token = event.token ?? this.#tokens.get(event.request_id);
    return {
      time_ms: this.now(),
      event_id: newId(),
      ...event,
      ...(token ? { token } : {}),
      type: "engagement",
    };
  }

  /** Publishes or changes items. Needs the scope `catalogue`: not for browsers. */
  upsertItems(items: Iterable<Item>, options: CallOptions = {}): Promise<Receipt> {
    return this.#inBatches("items", items, MAX_ROWS, options);
  }

  /** Sets users' profiles. Needs the scope `users`: not for browsers. */
  upsertUsers(users: Iterable<User>, options: CallOptions = {}): Promise<Receipt> {
    return this.#inBatches("users", users, MAX_ROWS, options);
  }

  /** Removes an item: it is no longer recommended. */
  removeItem(itemId: Id, options: CallOptions = {}): Promise<Receipt> {
    return this.#ask("DELETE", `/v1/items/${encodeURIComponent(itemId)}`, options);
  }

  /** Erases a user. */
  eraseUser(userId: Id, options: CallOptions = {}): Promise<Receipt> {
    return this.#ask("POST", "/v1/users/erase", { ...options, body: { user_id: userId } });
  }

  /** Notes wishes of viewers: block, mute or see less. */
  setPreferences(preferences: Iterable<Preference>, options: CallOptions = {}): Promise<Receipt> {
    return this.#inBatches("preferences", preferences, MAX_PREFERENCES, options);
  }

  /** The current session of a user. */
  session(userId: Id, options: CallOptions = {}): Promise<Session> {
    return this.#ask("GET", `/v1/sessions/${encodeURIComponent(userId)}`, options);
  }

  /** The version that answers, and how fresh it is. */
  status(options: CallOptions = {}): Promise<Status> {
    return this.#ask("GET", "/v1/status", options);
  }

  /** Whether the server is ready to answer; false if nothing listens. */
  async isReady(options: CallOptions = {}): Promise<boolean> {
    try {
      await this.#ask("GET", "/readyz", { attempts: 1, ...options });
      return true;
    } catch (error) {
      if (error instanceof ApiError) return false;
      throw error;
    }
  }

  /** Milliseconds since 1970, by the server's clock once it has answered: it refuses events from the future. */
  now(): number {
    return this.#clock() + this.#skewMs;
  }

  async #list<F>(path: string, body: RecommendRequest, options: CallOptions): Promise<Recommendations<F>> {
    const answer = await this.#ask<Recommendations<F>>("POST", path, { attempts: 1, ...options, body });
    this.#tokens.set(answer.request_id, answer.token);
    if (this.#tokens.size > MAX_TOKENS) this.#tokens.delete(this.#tokens.keys().next().value!);
    return answer;
  }

  async #inBatches(kind: string, values: Iterable<unknown>, maxCount: number, options: CallOptions): Promise<Receipt> {
    const total: Receipt = { accepted: 0, duplicates: 0, rejected: 0, unproven: 0, results: [] };
    for (const batch of batchesOf(values, maxCount, MAX_BYTES)) {
      const receipt = await this.#ask<Receipt>("POST", `/v1/${kind}`, { ...options, body: { [kind]: batch } });
      const before = total.results.length;
      total.accepted += receipt.accepted;
      total.duplicates += receipt.duplicates;
      total.rejected += receipt.rejected;
      total.unproven += receipt.unproven;
      for (const result of receipt.results) total.results.push(shifted(result, before));
    }
    return total;
  }

  async #ask<T>(method: string, path: string, call: Call): Promise<T> {
    const attempts = call.attempts ?? this.#options.attempts ?? 5;
    for (let failures = 1; ; failures++) {
      try {
        return await this.#attempt<T>(method, path, call);
      } catch (error) {
        const isLast = failures >= attempts || call.signal?.aborted;
        if (isLast || !(error instanceof ApiError) || !error.passing || error.retryAfterMs > LONGEST_ASKED_MS) throw error;
        const { random = Math.random, sleep = sleepFor, backoff = { firstMs: 200, longestMs: 5_000 } } = this.#options;
        await sleep(waitMs(failures, random(), error.retryAfterMs, backoff));
        call.signal?.throwIfAborted();
      }
    }
  }

  async #attempt<T>(method: string, path: string, call: Call): Promise<T> {
    const headers: Record<string, string> = {};
    if (call.body !== undefined) headers["content-type"] = "application/json";
    const controller = new AbortController();
    const abort = () => controller.abort(call.signal?.reason);
    if (call.signal?.aborted) abort();
    call.signal?.addEventListener("abort", abort);
    const timeoutMs = call.timeoutMs ?? this.#options.timeoutMs ?? 5_000;
    const timer = setTimeout(() => controller.abort(new Error(`no answer within ${timeoutMs} ms`)), timeoutMs);
    try {
      // A closing page runs no promise: then the key of the call before is used.
      const key = call.keepalive ? this.#key : await this.#currentKey(controller.signal);
      if (key) headers.authorization = `Bearer ${key}`;
      const init: RequestInit = { method, headers, signal: controller.signal, cache: "no-store" };
      if (call.body !== undefined) init.body = JSON.stringify(call.body);
      if (call.keepalive) init.keepalive = true;
      const sentMs = this.#clock();
      const response = await this.#fetch((this.#options.url ?? "").replace(/\/$/, "") + path, init);
      if (this.#clock() - sentMs < QUICK_MS) this.#readClock(response.headers.get("date"));
      const text = await response.text();
      if (!response.ok) {
        throw new ApiError(method, path, response.status, text, retryAfterMs(response.headers.get("retry-after")));
      }
      return read<T>(method, path, text);
    } catch (error) {
      if (error instanceof ApiError || call.signal?.aborted) throw error;
      throw new ApiError(method, path, 0, error instanceof Error ? error.message : String(error));
    } finally {
      clearTimeout(timer);
      call.signal?.removeEventListener("abort", abort);
    }
  }

  async #currentKey(signal: AbortSignal): Promise<string | undefined> {
    const { key } = this.#options;
    if (typeof key !== "function") return this.#key;
    // One that comes after its attempt has ended serves the next: else a slow one would never be there in time.
    this.#coming = [...this.#coming.slice(1 - COMING), Promise.resolve(key())];
    try {
      this.#key = await unlessAborted(Promise.race(this.#coming), signal);
      this.#coming = [];
    } catch (error) {
      if (!signal.aborted) this.#coming = [];
      throw error;
    }
    return this.#key;
  }

  #clock(): number {
    return (this.#options.now ?? Date.now)();
  }

  #readClock(date: string | null): void {
    const skewMs = date === null ? NaN : Date.parse(date) - this.#clock();
    if (!Number.isNaN(skewMs)) this.#skewMs = Math.abs(skewMs) > SKEW_MS ? skewMs : 0;
  }
}

/** What a promise resolves to; rejects at once when the signal aborts. */
function unlessAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    promise.then(resolve, reject);
    if (signal.aborted) reject(signal.reason);
    signal.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}

function read<T>(method: string, path: string, text: string): T {
  try {
    return JSON.parse(text) as T;
  } catch {
    throw new ApiError(method, path, 502, "the answer isn't JSON");
  }
}

function searchOf({ n, filters }: { n?: number; filters?: Filters }): string {
  const search = new URLSearchParams();
  if (n !== undefined) search.set("n", String(n));
  if (filters) search.set("filters", JSON.stringify(filters));
  return search.toString();
}

function shifted(result: Result, by: number): Result {
  return by === 0 ? result : { ...result, index: result.index + by };
}

function sleepFor(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
