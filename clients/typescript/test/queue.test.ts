import assert from "node:assert/strict";
import test from "node:test";

import { EventQueue } from "../src/queue.js";
import { MemoryStore, viewOf } from "./support.js";

const NOW_MS = 1_800_000_000_000;
const NONE = new Set<string>();

function queueOf(store: MemoryStore | null, limit = 100, userId = "u1", nowMs = NOW_MS): EventQueue {
  return new EventQueue(store, userId, { name: "t", limit, maxAgeMs: 1_000_000, now: () => nowMs });
}

function idsOf(queue: EventQueue): string[] {
  return Array.from(queue.waiting(NONE), (event) => event.event_id);
}

test("events outlive the page, in the order of their times, until they are answered", () => {
  const store = new MemoryStore();
  const first = queueOf(store);
  for (const [id, at] of [["b", 2], ["a", 1], ["c", 3]] as const) first.add(viewOf(id, NOW_MS + at));
  assert.deepEqual(idsOf(first), ["b", "a", "c"]);
  const second = queueOf(store);
  assert.deepEqual(idsOf(second), ["a", "b", "c"]);
  assert.deepEqual(Array.from(second.waiting(NONE))[0], viewOf("a", NOW_MS + 1));
  second.remove([viewOf("a", 0), viewOf("c", 0)]);
  assert.deepEqual(idsOf(queueOf(store)), ["b"]);
  assert.deepEqual(Array.from(second.waiting(new Set(["b"]))), []);
});

test("two open pages keep each other's events", () => {
  const store = new MemoryStore();
  const [one, other] = [queueOf(store), queueOf(store)];
  one.add(viewOf("a", NOW_MS));
  other.add(viewOf("b", NOW_MS + 1));
  one.add(viewOf("c", NOW_MS + 2));
  other.remove([viewOf("b", 0)]);
  assert.deepEqual(idsOf(queueOf(store)), ["a", "c"]);
});

test("beyond the limit the oldest are dropped and counted, also for the next page", () => {
  const store = new MemoryStore();
  const queue = queueOf(store, 3);
  for (let i = 0; i < 5; i++) queue.add(viewOf(`e${i}`, NOW_MS + i));
  assert.deepEqual([queue.size, queue.dropped], [3, 2]);
  assert.deepEqual(idsOf(queue), ["e2", "e3", "e4"]);
  const next = queueOf(store, 2);
  assert.deepEqual([idsOf(next), next.dropped], [["e3", "e4"], 3]);
  assert.equal(queueOf(store, 2).dropped, 3);
});

test("too old events are dropped and counted, unreadable ones too", () => {
  const store = new MemoryStore();
  queueOf(store).add(viewOf("old", NOW_MS));
  queueOf(store).add(viewOf("new", NOW_MS + 600_000));
  store.setItem("t:event:broken", "{");
  store.setItem("t:event:other", "7");
  store.setItem("another app's", "{");
  const queue = queueOf(store, 100, "u1", NOW_MS + 1_000_001);
  assert.deepEqual([idsOf(queue), queue.dropped], [["new"], 3]);
  assert.deepEqual(Array.from(store.values.keys()).sort(), ["another app's", "t:dropped", "t:event:new"]);
});

test("events of another user wait for that user", () => {
  const store = new MemoryStore();
  queueOf(store, 100, "anna").add(viewOf("a", NOW_MS, "anna"));
  const ben = queueOf(store, 100, "ben");
  ben.add(viewOf("b", NOW_MS, "ben"));
  assert.deepEqual(idsOf(ben), ["b"]);
  assert.deepEqual(idsOf(queueOf(store, 100, "anna")), ["a"]);
});

test("a full, forbidden or missing storage leaves the events in memory, and says so", () => {
  const store = new MemoryStore();
  const queue = queueOf(store);
  store.isFull = true;
  queue.add(viewOf("a", NOW_MS));
  assert.deepEqual([idsOf(queue), queue.unstored, queueOf(store).size], [["a"], 1, 0]);
  const forbidding = { get length(): number { throw new Error("SecurityError"); } } as unknown as MemoryStore;
  assert.equal(queueOf(forbidding).size, 0);
  const memory = queueOf(null);
  memory.add(viewOf("a", NOW_MS));
  memory.remove([viewOf("a", NOW_MS)]);
  assert.equal(memory.size, 0);
});
