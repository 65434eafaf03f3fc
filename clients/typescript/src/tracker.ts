// Tracker of a page: measures views with IntersectionObserver and sends them with other engagements.
//
// An event is stored before it is sent and forgotten once the server has answered for it, so a closed page, an offline
// spell or a server restart loses none; the event's id lets the server drop a repeat. When the page goes away, events go
// out by fetch with keepalive: unlike sendBeacon it carries the key and works across origins.

import type { FieldError, Id, Kind, ListRef, SentEngagement } from "./api.js";
import { type Client, MAX_EVENTS } from "./client.js";
import { DwellMeter } from "./dwell.js";
import { EventQueue, type KeyValueStore } from "./queue.js";
import type { Backoff } from "./retry.js";
import { Sender } from "./sender.js";

/** Item of a list, as an element shows it. */
export interface Target {
  /** The answer of `recommend`, or its request_id and token. */
  list: ListRef;
  itemId: Id;
}

export interface TrackerOptions {
  client: Client;
  userId: Id;
  surface?: string;
  /** What is sent of what the viewer sees: a `view` of each item that leaves the screen, or `seen` of each list
   * once one of its items is on it, for apps with `shown: list`. Default "views". */
  reports?: "views" | "lists";
  /** Share of the element's area, or of the screen, that must be visible; default 0.5. */
  visibleShare?: number;
  /** Shortest visible time of a view; default 500. */
  minVisibleMs?: number;
  /** Longest watch time of a view; default half an hour. */
  maxVisibleMs?: number;
  /** Element that scrolls; default: the screen. */
  root?: Element | null;
  /** Most events of one call, 1 to 500; default 100. */
  batch?: number;
  /** Wait for more events before a batch goes out; default 1,000. */
  lingerMs?: number;
  /** Most unsent events; the oldest are dropped beyond it. Default 2,000, about 1 to 3 MB of the site's storage. */
  maxQueued?: number;
  /** Unsent events that are older are dropped; default 7 days. */
  maxAgeMs?: number;
  /** Prefix of the keys in the storage; default "recsys". */
  name?: string;
  /** Storage of unsent events; null: none. Default: localStorage. */
  storage?: KeyValueStore | null;
  backoff?: Backoff;
  /** Called for each event that the server refuses for good. */
  onRejected?: (event: SentEngagement, error: FieldError | null) => void;
}

/** Counts of a tracker. `dropped` is of the site, the others are of this page. */
export interface TrackerStats {
  waiting: number;
  accepted: number;
  rejected: number;
  dropped: number;
  unstored: number;
  /** Why the last call failed; null if it didn't. */
  failure: string | null;
}

const MAX_SEEN = 1_000; // lists whose report is remembered
const THRESHOLDS = Array.from({ length: 21 }, (_, i) => i / 20); // an element taller than the screen needs small steps

export class Tracker {
  readonly #client: Client;
  readonly #userId: Id;
  readonly #surface: string;
  readonly #share: number;
  readonly #reportsLists: boolean;
  readonly #seen = new Set<string>(); // newest lists that were reported
  readonly #unseen = new Set<Target>(); // on a page in the background
  readonly #targets = new WeakMap<Element, Target>();
  readonly #meter: DwellMeter<Element>;
  readonly #observer: IntersectionObserver;
  readonly #queue: EventQueue;
  readonly #sender: Sender;
  readonly #listeners = new AbortController();

  constructor(options: TrackerOptions) {
    const { client, userId, name = "recsys", surface = "feed", visibleShare = 0.5 } = options;
    this.#client = client;
    this.#userId = userId;
    this.#surface = surface;
    this.#share = visibleShare;
    this.#reportsLists = options.reports === "lists";
    this.#meter = new DwellMeter(options.minVisibleMs ?? 500, options.maxVisibleMs ?? 1_800_000);
    const store = options.storage === undefined ? localStore() : options.storage;
    const now = () => client.now();
    const { maxQueued: limit = 2_000, maxAgeMs = 7 * 86_400_000 } = options;
    this.#queue = new EventQueue(store, userId, { name, limit, maxAgeMs, now });
    this.#sender = new Sender(this.#queue, {
      send: (events, keepalive) => client.sendBatch(events, keepalive),
      timers: { start: (run, ms) => setTimeout(run, ms), stop: (timer) => clearTimeout(timer as number) },
      random: Math.random,
      batch: Math.max(1, Math.min(MAX_EVENTS, options.batch ?? 100)),
      lingerMs: options.lingerMs ?? 1_000,
      backoff: options.backoff ?? { firstMs: 500, longestMs: 30_000 },
      onRejected: options.onRejected ?? (() => {}),
    });
    const threshold = [...THRESHOLDS, visibleShare];
    this.#observer = new IntersectionObserver((entries) => this.#look(entries), { root: options.root ?? null, threshold });
    this.#listen();
  }

  get stats(): TrackerStats {
    const { accepted, rejected, failure } = this.#sender;
    const { size: waiting, dropped, unstored } = this.#queue;
    return { waiting, accepted, rejected, dropped, unstored, failure };
  }

  /** Measures the views of an element that shows an item. */
  observe(element: Element, target: Target): void {
    const before = this.#targets.get(element);
    if (before?.itemId === target.itemId && before.list.request_id === target.list.request_id) return;
    if (before !== undefined) this.unobserve(element);
    this.#targets.set(element, target);
    this.#observer.observe(element);
  }

  /** Ends the measuring of an element, for example before it is removed: a view of it ends now. */
  unobserve(element: Element): void {
    this.#look(this.#observer.takeRecords());
    this.#observer.unobserve(element);
    this.#leave(element);
    const target = this.#targets.get(element);
    if (target !== undefined) this.#unseen.delete(target);
    this.#targets.delete(element);
  }

  /** Sends another engagement with an item, such as a like. */
  track(kind: Kind, target: Target, facts: { watch_ms?: number; value?: number } = {}): void {
    const { list, itemId } = target;
    this.#sender.add(
      this.#client.prepare({
        kind,
        user_id: this.#userId,
        item_id: itemId,
        request_id: list.request_id,
        surface: this.#surface,
        ...(list.token ? { token: list.token } : {}),
        ...facts,
      }),
    );
  }

  /** Sends what waits. Resolves once the server has answered for all of it, or a call failed. */
  flush(): Promise<void> {
    return this.#sender.flush();
  }

  /** Ends all views and the tracker. What isn't answered stays stored for the next one. */
  close(): void {
    this.#goAway(true);
    this.#observer.disconnect();
    this.#listeners.abort();
    this.#sender.close();
  }

  #listen(): void {
    const { signal } = this.#listeners;
    const resume = () => {
      if (document.visibilityState === "hidden") return;
      this.#meter.resume(performance.now());
      for (const target of this.#unseen) this.#see(target);
      this.#unseen.clear();
      this.#sender.hurry();
    };
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.#goAway(false);
      else resume();
    }, { signal });
    addEventListener("pagehide", () => this.#goAway(true), { signal });
    addEventListener("pageshow", resume, { signal }); // from the back-forward cache
    addEventListener("online", () => this.#sender.hurry(), { signal });
    if (document.visibilityState === "hidden") this.#meter.pause(performance.now()); // opened in the background
  }

  #look(entries: IntersectionObserverEntry[]): void {
    for (const entry of entries) {
      const target = this.#targets.get(entry.target);
      if (target === undefined) continue;
      if (this.#reportsLists) {
        if (!this.#isVisible(entry)) this.#unseen.delete(target);
        else if (document.visibilityState === "hidden") this.#unseen.add(target);
        else this.#see(target);
      } else if (this.#isVisible(entry)) this.#meter.show(entry.target, entry.time);
      else this.#leave(entry.target, entry.time);
    }
  }

  #see(target: Target): void {
    const { request_id } = target.list;
    if (this.#seen.has(request_id)) return;
    this.#seen.add(request_id);
    if (this.#seen.size > MAX_SEEN) this.#seen.delete(this.#seen.values().next().value as string);
    this.track("seen", target);
  }

  #isVisible({ isIntersecting, intersectionRatio, intersectionRect, rootBounds }: IntersectionObserverEntry): boolean {
    if (!isIntersecting) return false;
    const screen = (rootBounds?.width ?? 0) * (rootBounds?.height ?? 0); // unknown in a frame of another origin
    const area = intersectionRect.width * intersectionRect.height;
    return intersectionRatio >= this.#share || (screen > 0 && area >= this.#share * screen);
  }

  #leave(element: Element, nowMs = performance.now()): void {
    this.#noteView(element, this.#meter.hide(element, nowMs));
  }

  #noteView(element: Element, dwellMs: number | null): void {
    const target = this.#targets.get(element);
    if (target !== undefined && dwellMs !== null) this.track("view", target, { watch_ms: dwellMs });
  }

  #goAway(closes: boolean): void {
    this.#look(this.#observer.takeRecords());
    for (const [element, dwellMs] of this.#meter.pause(performance.now())) this.#noteView(element, dwellMs);
    this.#sender.leave(closes);
  }
}

function localStore(): KeyValueStore | null {
  try {
    return localStorage;
  } catch {
    return null; // forbidden
  }
}
