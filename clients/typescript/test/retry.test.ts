import assert from "node:assert/strict";
import test from "node:test";

import { isPassing, retryAfterMs, waitMs } from "../src/retry.js";

const BACKOFF = { firstMs: 200, longestMs: 5_000 };

test("waits double up to the longest, and half of each is random", () => {
  const shortest = [1, 2, 3, 4, 5, 6, 99].map((failures) => waitMs(failures, 0, 0, BACKOFF));
  assert.deepEqual(shortest, [100, 200, 400, 800, 1_600, 2_500, 2_500]);
  assert.equal(waitMs(3, 0.5, 0, BACKOFF), 600);
  assert(waitMs(99, 0.999, 0, BACKOFF) < 5_000);
});

test("the server's wait is never cut, and clients that were sent away together don't come back together", () => {
  assert.equal(waitMs(1, 0, 3_000, BACKOFF), 3_000);
  assert.equal(waitMs(1, 0.8, 3_000, BACKOFF), 4_200);
});

test("what passes is retried, what doesn't isn't", () => {
  assert.deepEqual([0, 408, 429, 500, 502, 503, 504, 507].filter((status) => !isPassing(status)), []);
  assert.deepEqual([400, 401, 403, 404, 413, 421, 422].filter(isPassing), []);
});

test("Retry-After is in seconds, and anything else is none", () => {
  assert.deepEqual(["3", "0.5", "", null, "soon", "-1"].map(retryAfterMs), [3_000, 500, 0, 0, 0, 0]);
});
