import assert from "node:assert/strict";
import test from "node:test";

import type { Receipt, SentEngagement } from "../src/api.js";
import { bytesOf } from "../src/batches.js";
import { ApiError } from "../src/client.js";
import { EventQueue } from "../src/queue.js";
import { Sender } from "../src/sender.js";
import { FakeClock, MemoryStore, seeded, settled, viewOf } from "./support.js";

/** Takes events as the server does; `failures` come first, `isSlow` holds all answers back. */
class FakeServer {
  readonly taken = new Map<string, number>(); // copies by event_id
  readonly calls: { ids: string[]; keepalive: boolean; bytes: number }[] = [];
  failures: (number | "lost answer")[] = [];
  retryAfterMs = 0;
  isSlow = false;
  readonly poison = new Set<string>(); // a body with one of these is refused whole
  readonly wrong = new Set<string>(); // these are rejected one by one

  readonly send = async (events: SentEngagement[], keepalive: boolean): Promise<Receipt> => {
    this.calls.push({ ids: events.map((event) => event.event_id), keepalive, bytes: bytesOf(events) });
    const failure = this.failures.shift();
    if (this.isSlow) await new Promise(() => {});
    if (typeof failure === "number") throw new ApiError("POST", "/v1/events", failure, "refused", this.retryAfterMs);
    if (events.some((event) => this.poison.has(event.event_id))) throw new ApiError("POST", "/v1/events", 422, "poison");
    const results = events.map((event, index) => {
      if (this.wrong.has(event.event_id)) {
        return { index, status: "rejected" as const, error: { field: "kind", value: "x", expected: "a kind" } };
      }
      const copies = this.taken.get(event.event_id) ?? 0;
      this.taken.set(event.event_id, copies + 1);
      return { index, status: copies ? ("duplicate" as const) : ("accepted" as const) };
    });
    if (failure === "lost answer") throw new ApiError("POST", "/v1/events", 0, "connection reset");
    return { accepted: 0, duplicates: 0, rejected: 0, unproven: 0, results };
  };
}

class Page {
  readonly rejected: string[] = [];
  readonly queue: EventQueue;
  readonly sender: Sender;
  #made = 0;

  constructor(readonly clock: FakeClock, readonly server: FakeServer, store: MemoryStore | null = null, random = () => 0, batch = 10) {
    const options = { name: "t", limit: 100_000, maxAgeMs: 1e12, now: () => clock.nowMs };
    this.queue = new EventQueue(store, "u1", options);
    this.sender = new Sender(this.queue, {
      send: server.send, timers: clock, random, batch, lingerMs: 1_000, backoff: { firstMs: 400, longestMs: 30_000 },
      onRejected: (event) => this.rejected.push(event.event_id),
    });
  }

  add(count: number, name = "e"): void {
    for (let i = 0; i < count; i++) this.sender.add(viewOf(`${name}${this.#made++}`, this.clock.nowMs));
  }
}

function pageOf(server = new FakeServer()): Page {
  return new Page(new FakeClock(), server);
}

test("events wait for others, but a full batch goes at once", async () => {
  const page = pageOf();
  page.add(3);
  await page.clock.advance(999);
  assert.equal(page.server.calls.length, 0);
  await page.clock.advance(1);
  assert.deepEqual(page.server.calls, [{ ids: ["e0", "e1", "e2"], keepalive: false, bytes: page.server.calls[0]!.bytes }]);
  assert.equal(page.queue.size, 0);
  page.add(25);
  await page.clock.advance(0);
  assert.deepEqual(page.server.calls.slice(1).map((call) => call.ids.length), [10, 10]);
  await page.clock.advance(1_000);
  assert.deepEqual([page.server.taken.size, page.sender.accepted, page.queue.size], [28, 28, 0]);
  assert.equal(page.clock.nextMs, null, "nothing waits, no timer runs");
});

test("a failed batch comes again after growing waits, and new events don't hurry it", async () => {
  const page = pageOf();
  page.server.failures = [503, 0, 429];
  page.add(2);
  await page.clock.advance(1_000);
  const waits = [page.clock.nextMs];
  page.add(20);
  assert.equal(page.clock.nextMs, waits[0]);
  for (let i = 0; i < 2; i++) {
    await page.clock.advance(page.clock.nextMs!);
    waits.push(page.clock.nextMs);
  }
  assert.deepEqual(waits, [200, 400, 800]);
  assert(page.sender.failure!.includes("status 429 (refused)"), page.sender.failure!);
  await page.clock.advance(10_000);
  assert.deepEqual([page.server.taken.size, page.sender.failure], [22, null]);
});

test("it waits as long as the server asks, and goes at once when the network is back", async () => {
  const page = pageOf();
  page.server.failures = [429];
  page.server.retryAfterMs = 7_000;
  page.add(1);
  await page.clock.advance(1_000);
  assert.equal(page.clock.nextMs, 7_000);
  page.sender.hurry();
  await page.clock.advance(0);
  assert.equal(page.server.taken.size, 1);
});

test("a key or an address that is wrong for now loses nothing", async () => {
  const page = pageOf();
  page.server.failures = [401, 403, 404, 421];
  page.add(1);
  await page.clock.advance(60_000);
  assert.deepEqual([page.server.taken.size, page.rejected], [1, []]);
});

test("of a refused body only the event that is to blame is given up", async () => {
  const page = pageOf();
  page.server.poison.add("e3");
  page.add(10);
  await page.clock.advance(60_000);
  assert.deepEqual([page.server.taken.size, page.rejected, page.sender.rejected, page.queue.size], [9, ["e3"], 1, 0]);
});

test("a rejected event is reported and not sent again", async () => {
  const page = pageOf();
  page.server.wrong.add("e1");
  page.add(3);
  await page.clock.advance(60_000);
  assert.deepEqual([page.rejected, page.sender.accepted, page.server.calls.length], [["e1"], 2, 1]);
});

test("flush sends now, and ends with the answer, a failure or the sender", async () => {
  const page = pageOf();
  await page.sender.flush();
  page.add(25);
  const flushed = page.sender.flush();
  await page.clock.advance(0);
  await flushed;
  assert.equal(page.server.taken.size, 25);
  page.server.failures = [503];
  page.add(1);
  const failed = page.sender.flush();
  await page.clock.advance(0);
  await failed;
  assert.equal(page.queue.size, 1);
  page.server.isSlow = true;
  const ended = page.sender.flush();
  page.sender.close();
  await ended;
  await page.sender.flush();
});

test("a page that goes away hands its events to the browser, within what that takes", async () => {
  const page = pageOf();
  page.add(900);
  page.sender.leave(false);
  const [first] = page.server.calls;
  assert(first!.keepalive && first!.bytes <= 60_002 && first!.bytes > 55_000, String(first!.bytes));
  page.sender.leave(true);
  assert.equal(page.server.calls.length, 1, "the browser would refuse more until the first are answered");
  await settled();
  assert.equal(page.queue.size, 900 - first!.ids.length, "the page came back: they are answered for");
  await page.clock.advance(60_000);
  assert.equal(page.server.taken.size, 900);
  assert(Array.from(page.server.taken.values()).every((copies) => copies === 1));
});

test("a closing page sends the events of its unanswered call again, a hidden one doesn't", async () => {
  const page = pageOf();
  page.server.isSlow = true;
  page.add(10);
  await page.clock.advance(0);
  page.add(1);
  page.sender.leave(false);
  page.sender.leave(true);
  assert.deepEqual(page.server.calls.map((call) => [call.ids.length, call.keepalive]), [[10, false], [1, true], [10, true]]);
});

test("a hidden page whose call failed sends again later", async () => {
  const page = pageOf();
  page.server.failures = [503];
  page.add(1);
  page.sender.leave(false);
  await settled();
  assert.equal(page.queue.size, 1);
  await page.clock.advance(1_000);
  assert.equal(page.queue.size, 0);
});

test("a failure ends with the queue, whichever call or refusal empties it", async () => {
  const [left, refused] = [pageOf(), pageOf()];
  for (const page of [left, refused]) page.server.failures = [503];
  refused.server.poison.add("e0");
  for (const page of [left, refused]) {
    page.add(1);
    await page.clock.advance(1_000);
    assert(page.sender.failure!.includes("status 503"), page.sender.failure!);
  }
  left.sender.leave(false);
  await settled();
  for (const page of [left, refused]) {
    await page.clock.advance(60_000);
    assert.deepEqual([page.queue.size, page.sender.failure], [0, null]);
    page.add(1);
    await page.clock.advance(60_000);
    assert.deepEqual([page.queue.size, page.server.taken.has("e1"), page.sender.failure], [0, true, null]);
  }
});

test("a closed sender sends nothing more, and the next page sends the rest", async () => {
  const store = new MemoryStore();
  const page = new Page(new FakeClock(), new FakeServer(), store);
  page.add(3);
  page.sender.close();
  page.add(2);
  await page.clock.advance(60_000);
  assert.equal(page.server.calls.length, 0);
  const next = new Page(page.clock, page.server, store);
  await page.clock.advance(0);
  assert.deepEqual([page.server.taken.size, next.queue.size, store.values.size], [5, 0, 0]);
});

test("10,000 events arrive, whatever is refused, lost or closed", async () => {
  for (const seed of [1, 2, 3]) {
    const [clock, server, store, random] = [new FakeClock(), new FakeServer(), new MemoryStore(), seeded(seed)];
    let page = new Page(clock, server, store, random, 50);
    for (let sent = 0; sent < 10_000; sent += 20) {
      page.add(20, `${sent}-`);
      const kind = random();
      if (kind < 0.1) server.failures.push(503);
      else if (kind < 0.2) server.failures.push("lost answer");
      else if (kind < 0.25) server.failures.push(0, 502, 429, 0);
      server.isSlow = random() < 0.1; // this call's answer never comes
      await clock.advance(random() * 3_000);
      if (kind > 0.9) page.sender.leave(false);
      if (server.isSlow || kind > 0.95) {
        page.sender.leave(true);
        page.sender.close();
        page = new Page(clock, server, store, random, 50);
      }
      server.isSlow = false;
    }
    server.failures = [];
    await clock.advance(3_600_000);
    assert.deepEqual([server.taken.size, page.queue.size, page.queue.dropped, store.values.size], [10_000, 0, 0, 0]);
  }
});
