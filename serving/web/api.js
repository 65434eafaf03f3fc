// Client of the server's API, one function per route. Failures are ApiErrors that say whether to retry.

const TIMEOUT_MS = 8_000;

export class ApiError extends Error {
  /** `status` is 0 without an answer; `retryAfter_ms` is the delay that the server requested, if any. */
  constructor(message, status = 0, retryAfter_ms = 0) {
    super(message);
    this.status = status;
    this.retryAfter_ms = retryAfter_ms;
  }

  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

async function request(path, { body, keepalive = false } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method: body === undefined ? "GET" : "POST",
      headers: body === undefined ? {} : { "content-type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
      keepalive,
      cache: "no-store",
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    throw new ApiError(`${path}: no answer (${error.name})`);
  }
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

/** Has the browser send events even after the page closes; false if it refused. */
export function beacon(events) {
  const body = new Blob([JSON.stringify({ events })], { type: "application/json" });
  return navigator.sendBeacon?.("/v1/events", body) ?? false;
}
