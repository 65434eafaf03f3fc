import assert from "node:assert/strict";
import test from "node:test";

import { batchesOf, bytesOf, firstOf, MAX_BYTES, newId } from "../src/batches.js";

test("batches hold the order, the count and the bytes", () => {
  assert.deepEqual(batchesOf([1, 2, 3, 4, 5], 2, 100), [[1, 2], [3, 4], [5]]);
  assert.deepEqual(batchesOf([], 2, 100), []);
  const values = ["aaaa", "bbbb", "cccc"]; // 6 bytes each with quotes, and a comma
  assert.deepEqual(batchesOf(values, 9, 14), [["aaaa", "bbbb"], ["cccc"]]);
  assert.deepEqual(batchesOf(values, 9, 13), [["aaaa"], ["bbbb"], ["cccc"]]);
  assert.deepEqual(batchesOf(values, 9, 1), [["aaaa"], ["bbbb"], ["cccc"]], "a larger value goes alone");
});

test("a batch of many short values holds what the server takes", () => {
  const rows = Array.from({ length: 400 }, (_, n) => ({ id: n, tags: Array(300).fill(1) }));
  const batches = batchesOf(rows, 500, MAX_BYTES);
  assert.deepEqual(batches.flat(), rows);
  const counts = batches.map((batch) => JSON.stringify({ items: batch }).match(/[,[{]/g)!.length);
  assert.equal(counts.length, 4);
  assert.equal(Math.max(...counts) <= 40_000, true, counts.join());
});

test("bytes are of UTF-8", () => {
  assert.equal(bytesOf("ä€𝄞"), 2 + 2 + 3 + 4);
});

test("the first of endless values end", () => {
  function* endless() {
    for (let i = 0; ; i++) yield i;
  }
  assert.deepEqual(Array.from(firstOf(endless(), 3)), [0, 1, 2]);
  assert.deepEqual(Array.from(firstOf([1], 0)), []);
});

test("ids are UUIDs, with and without crypto.randomUUID", () => {
  const format = /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/;
  const ids = new Set(Array.from({ length: 100 }, newId));
  Object.defineProperty(crypto, "randomUUID", { value: undefined, configurable: true }); // as on a LAN address
  for (let i = 0; i < 100; i++) ids.add(newId());
  delete (crypto as { randomUUID?: unknown }).randomUUID;
  assert.equal(ids.size, 200);
  for (const id of ids) assert(format.test(id), id);
});
