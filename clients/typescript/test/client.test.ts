import assert from "node:assert/strict";
import test from "node:test";

import type { Engagement } from "../src/api.js";
import { ApiError, Client, type ClientOptions } from "../src/client.js";

const NOW_MS = 1_800_000_000_000;
const LIKE: Engagement = { user_id: "u1", item_id: "v1", request_id: "r1", kind: "like" };
const LIST = { request_id: "r1", token: "t1", items: [], stamp: {}, took_ms: 1, degraded: [] };

type Answer = { status?: number; body?: unknown; headers?: Record<string, string> } | Error | "never";

/** A server behind `fetch`: `answers` come first, in order; then everything is accepted. */
class FakeServer {
  readonly calls: { method: string; url: string; headers: Record<string, string>; body: any; keepalive: boolean }[] = [];
  readonly waits: number[] = [];
  answers: Answer[] = [];

  readonly fetch = async (url: unknown, init: any = {}): Promise<Response> => {
    const body = init.body === undefined ? undefined : JSON.parse(init.body);
    this.calls.push({ method: init.method, url: String(url), headers: init.headers, body, keepalive: init.keepalive ?? false });
    if (init.signal.aborted) throw init.signal.reason;
    const answer = this.answers.shift() ?? {};
    if (answer === "never") {
      return new Promise((_, reject) => init.signal.addEventListener("abort", () => reject(init.signal.reason)));
    }
    if (answer instanceof Error) throw answer;
    const results = (Object.values(body ?? {})[0] as unknown[] | undefined)?.map?.((each: any, index: number) =>
      each.item_id === "bad" ? { index, status: "rejected" } : { index, status: "accepted" });
    const rejected = results?.filter((each: any) => each.status === "rejected").length ?? 0;
    const receipt = { accepted: (results?.length ?? 1) - rejected, duplicates: 0, rejected, unproven: 0, results: results ?? [] };
    const given = answer.body ?? (/\/(recommend|rank)$/.test(String(url)) ? LIST : receipt);
    const text = typeof given === "string" ? given : JSON.stringify(given);
    return new Response(text, { status: answer.status ?? 200, headers: answer.headers ?? {} });
  };

  client(options: ClientOptions = {}): Client {
    return new Client({
      url: "http://feed.test/", fetch: this.fetch as typeof fetch, now: () => NOW_MS, random: () => 0,
      sleep: async (ms) => void this.waits.push(ms), ...options,
    });
  }
}

test("a list is asked for once, since each is an impression, unless the caller wants more", async () => {
  const server = new FakeServer();
  server.answers = [{ status: 503 }];
  await assert.rejects(server.client().recommend({ user_id: "u1" }), (error) => error.passing && error.status === 503);
  assert.equal(server.calls.length, 1);
  server.answers = [{ status: 503 }];
  assert.equal((await server.client().recommend({ user_id: "u1", n: 3 }, { attempts: 2 })).request_id, "r1");
  assert.deepEqual(server.calls[2]!.body, { user_id: "u1", n: 3 });
});

test("rankings and lists for all have routes of their own, with filters", async () => {
  const server = new FakeServer();
  await server.client().rank({ user_id: "u1", candidate_ids: ["a", 2], n: 1, log: false });
  await server.client().items("trending", { n: 3, filters: { tags: ["a", "b"], price: { max: 5 } } });
  await server.client().similar("a/b c");
  assert.deepEqual(server.calls.map((call) => [call.method, call.url]), [
    ["POST", "http://feed.test/v1/rank"],
    ["GET", "http://feed.test/v1/trending?n=3&filters=%7B%22tags%22%3A%5B%22a%22%2C%22b%22%5D%2C%22price%22%3A%7B%22max%22%3A5%7D%7D"],
    ["GET", "http://feed.test/v1/items/a%2Fb%20c/similar?"],
  ]);
  assert.deepEqual(server.calls[0]!.body, { user_id: "u1", candidate_ids: ["a", 2], n: 1, log: false });
});

test("events are sent again under the same id, after random and growing waits", async () => {
  for (const failure of [{ status: 503 }, { status: 429 }, { status: 507 }, new TypeError("fetch failed")]) {
    const server = new FakeServer();
    server.answers = [failure, failure, failure];
    assert.equal((await server.client().sendEvents([LIKE])).accepted, 1);
    assert.equal(new Set(server.calls.map((call) => call.body.events[0].event_id)).size, 1);
    assert.deepEqual(server.waits, [100, 200, 400]);
    await server.client({ random: () => 0.5 }).sendEvents([LIKE]);
  }
});

test("the server says how long to wait, and what it will never take isn't sent again", async () => {
  const server = new FakeServer();
  server.answers = [{ status: 429, headers: { "retry-after": "3" } }];
  await server.client().sendEvents([LIKE]);
  assert.deepEqual(server.waits, [3_000]);
  server.answers = [{ status: 413, body: "too large" }];
  await assert.rejects(server.client().sendEvents([LIKE]), /POST \/v1\/events: status 413 \(too large\).*won't help/);
  server.answers = [{ status: 429, headers: { "retry-after": "40000" } }];
  await assert.rejects(server.client().sendEvents([LIKE]), (error) => error.retryAfterMs === 40_000_000);
  assert.equal(server.waits.length, 1);
});

test("it gives up in the end", async () => {
  const server = new FakeServer();
  server.answers = Array.from({ length: 99 }, () => ({ status: 503 }));
  await assert.rejects(server.client({ attempts: 3 }).sendEvents([LIKE]), (error) => error instanceof ApiError);
  assert.deepEqual([server.calls.length, server.waits.length], [3, 2]);
});

test("a call without an answer ends in time, and one that the caller ends isn't repeated", async () => {
  const server = new FakeServer();
  server.answers = ["never", "never"];
  await assert.rejects(server.client({ timeoutMs: 20 }).recommend({ user_id: "u1" }), (error) => error.status === 0 && error.passing);
  const controller = new AbortController();
  const asked = server.client().sendEvents([LIKE], { signal: controller.signal });
  controller.abort(new Error("the page has moved on"));
  await assert.rejects(asked, /moved on/);
  assert.equal(server.calls.length, 2);
  await assert.rejects(server.client().status({ signal: AbortSignal.abort(new Error("before")) }), /before/);
});

test("events get a type, an id, a time and the token of their list; what they have stays", async () => {
  const server = new FakeServer();
  const client = server.client();
  await client.recommend({ user_id: "u1" });
  await client.sendEvents([LIKE, { ...LIKE, event_id: "mine", time_ms: 5, token: "own" }, { ...LIKE, request_id: "elsewhere" }]);
  const [first, second, third] = server.calls[1]!.body.events;
  assert(first.event_id.length === 36);
  assert.deepEqual({ ...first, event_id: "" }, { ...LIKE, type: "engagement", event_id: "", time_ms: NOW_MS, token: "t1" });
  assert.deepEqual([second.event_id, second.time_ms, second.token], ["mine", 5, "own"]);
  assert(!("token" in third));
});

test("many events go in batches, and the receipt keeps their order", async () => {
  const server = new FakeServer();
  const events = Array.from({ length: 1_003 }, (_, i) => ({ ...LIKE, item_id: i === 501 ? "bad" : `v${i}` }));
  const receipt = await server.client().sendEvents(events);
  assert.deepEqual(server.calls.map((call) => call.body.events.length), [500, 500, 3]);
  assert.deepEqual([receipt.accepted, receipt.rejected, receipt.results.length], [1_002, 1, 1_003]);
  assert(receipt.results.every((result, i) => result.index === i && (result.status === "rejected") === (i === 501)));
  const large = Array.from({ length: 3 }, (_, i) => ({ item_id: i, fields: { text: "x".repeat(150_000) } }));
  await server.client().upsertItems(large);
  assert.deepEqual(server.calls.slice(3).map((call) => call.body.items.length), [2, 1], "a body holds at most 1 MB");
});

test("each write has its route, and ids are quoted", async () => {
  const server = new FakeServer();
  const client = server.client({ key: "rk_1" });
  await client.upsertItems([{ item_id: "v1", fields: { tags: ["a"] } }]);
  await client.upsertUsers([{ user_id: 7, fields: {} }]);
  await client.removeItem("a/b c");
  await client.eraseUser("u\n1");
  await client.setPreferences([{ user_id: "u1", field: "author", value: "a3", wish: "block" }]);
  await client.session("a/b");
  const calls = server.calls.map(({ method, url, body }) => [method, url.slice("http://feed.test".length), body]);
  assert.deepEqual(calls, [
    ["POST", "/v1/items", { items: [{ item_id: "v1", fields: { tags: ["a"] } }] }],
    ["POST", "/v1/users", { users: [{ user_id: 7, fields: {} }] }],
    ["DELETE", "/v1/items/a%2Fb%20c", undefined],
    ["POST", "/v1/users/erase", { user_id: "u\n1" }],
    ["POST", "/v1/preferences", { preferences: [{ user_id: "u1", field: "author", value: "a3", wish: "block" }] }],
    ["GET", "/v1/sessions/a%2Fb", undefined],
  ]);
  assert(server.calls.every((call) => call.headers.authorization === "Bearer rk_1"));
});

test("a key that is renewed is asked for before each call; a closing page uses the one before", async () => {
  const server = new FakeServer();
  let made = 0;
  const client = server.client({ key: async () => `token-${++made}` });
  await client.status();
  await client.status();
  const sent = client.sendBatch([client.prepare(LIKE)], true);
  assert.equal(server.calls.length, 3, "the call is made before any promise runs");
  await sent;
  assert.deepEqual(server.calls.map((call) => call.headers.authorization), ["Bearer token-1", "Bearer token-2", "Bearer token-2"]);
  assert.deepEqual(server.calls.map((call) => call.keepalive), [false, false, true]);
});

test("a key that is slower than an attempt serves the next one", async () => {
  const server = new FakeServer();
  let calls = 0;
  const key = () => new Promise<string>((resolve) => setTimeout(resolve, 35, `token-${++calls}`));
  const client = server.client({ timeoutMs: 20, key });
  assert.equal((await client.sendEvents([LIKE])).accepted, 1);
  assert.deepEqual(server.calls.map((call) => call.headers.authorization), ["Bearer token-1"]);
});

test("a key that doesn't come in time, or fails, is a call without an answer", async () => {
  const server = new FakeServer();
  const keys = [
    () => new Promise<string>(() => {}),
    async () => { throw new Error("no token now"); },
    async () => "token-3",
  ];
  const client = server.client({ timeoutMs: 20, key: () => keys.shift()!() });
  assert.equal((await client.sendEvents([LIKE])).accepted, 1);
  assert.deepEqual(server.calls.map((call) => call.headers.authorization), ["Bearer token-3"]);
  assert.equal(server.waits.length, 2);
});

test("a wrong clock is set by the server's, since that refuses events from the future", async () => {
  const server = new FakeServer();
  const client = server.client();
  assert.equal(client.now(), NOW_MS);
  const dateOf = (ms: number) => ({ headers: { date: new Date(ms).toUTCString() } });
  server.answers = [dateOf(NOW_MS - 60_000), dateOf(NOW_MS + 1_000), {}];
  await client.status();
  assert.equal(client.prepare(LIKE).time_ms, NOW_MS - 60_000);
  await client.status();
  assert.equal(client.now(), NOW_MS, "a second is no error");
  await client.status();
  assert.equal(client.now(), NOW_MS);
  let nowMs = NOW_MS;
  const slow = server.client({ now: () => (nowMs += 5_000) });
  server.answers = [dateOf(NOW_MS - 60_000)];
  await slow.status();
  assert.equal(slow.now(), nowMs, "the date of a slow answer is old");
});

test("readiness is a plain answer, and an answer that isn't JSON is an error", async () => {
  const server = new FakeServer();
  server.answers = [{}, { status: 503 }, new TypeError("nobody listens"), { body: "<html>" }];
  assert.deepEqual([await server.client().isReady(), await server.client().isReady(), await server.client().isReady()], [true, false, false]);
  await assert.rejects(server.client({ attempts: 1 }).status(), /isn't JSON/);
});
