// Client of the server's API, one function per route. Failures are ApiErrors that say whether to retry.

import { userToken } from "./storage.js";

const TIMEOUT_MS = 8_000;
const SKEW_MS = 2_000; // the server's Date has whole seconds
const QUICK_MS = 1_000; // the Date of a slower answer says little about the time at which it arrives
let skew_ms = 0;

/** Milliseconds since 1970 by the server's clock, which judges the times of events: this device's may be wrong. */
export const now = () => Date.now() + skew_ms;

function readClock(date, sent_ms) {
  const ahead_ms = Date.parse(date) - Date.now();
  if (Number.isNaN(ahead_ms) || Date.now() - sent_ms > QUICK_MS) return;
  skew_ms = Math.abs(ahead_ms) > SKEW_MS ? ahead_ms : 0;
}

export class ApiError extends Error {
  /** `status` is 0 without an answer; `retryAfter_ms` is the delay that the server requested, if any. */
  constructor(message, status = 0, retryAfter_ms = 0) {
    super(message);
    this.status = status;
    this.retryAfter_ms = retryAfter_ms;
  }

  get passing() {
    return ![400, 413, 422].includes(this.status); // others, such as an expired token or a wrong host, can be mended
  }
}

async function request(path, { body, keepalive = false } = {}) {
  let answer;
  const sent_ms = Date.now();
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers: {
        ...(body === undefined ? {} : { "content-type": "application/json" }),
        ...(userToken ? { authorization: `Bearer ${userToken}` } : {}),
      },
      body: body === undefined ? undefined : JSON.stringify(body),
      keepalive,
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    throw new ApiError(`${path}: no answer (${error.name})`);
  }
  readClock(answer.headers.get("date"), sent_ms);
  if (!answer.ok) {
    const seconds = Number(answer.headers.get("retry-after")) || 0;
    throw new ApiError(`${path}: status ${answer.status}`, answer.status, seconds * 1000);
  }
  try {
    return await answer.json();
  } catch {
    throw new ApiError(`${path}: the answer isn't JSON`, 502);
  }
}

export const recommend = (query) => request("/v1/recommend", { body: query });
export const sendEvents = (events) => request("/v1/events", { body: { events } });
export const session = (user_id) => request(`/v1/sessions/${encodeURIComponent(user_id)}`);
export const status = () => request("/v1/status");
export const definition = () => request("/v1/app");
export const similar = (item_id, n) => request(`/v1/items/${encodeURIComponent(item_id)}/similar?n=${n}`);

/** Has the browser send events even after the page closes. A beacon couldn't carry the token. */
export const sendLast = (events) => request("/v1/events", { body: { events }, keepalive: true }).catch(() => {});

/** Has no items with a value in a field recommended to a viewer any more. */
export async function block(user_id, { field, value }) {
  const wish = { user_id, field, value, wish: "block" };
  const { accepted } = await request("/v1/preferences", { body: { preferences: [wish] } });
  if (!accepted) throw new ApiError("the wish is rejected", 422);
}
