// The server's API: one function a route. Every failure is an ApiError that says whether trying again helps.

const TIMEOUT_MS = 8_000;

export class ApiError extends Error {
  /** `status` is 0 where no answer came; `retryAfter_ms` is what the server asked for, if it did. */
  constructor(message, status = 0, retryAfter_ms = 0) {
    super(message);
    this.status = status;
    this.retryAfter_ms = retryAfter_ms;
  }

  get passing() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

async function ask(path, { body, keepalive = false } = {}) {
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

export const recommend = (request) => ask("/v1/recommend", { body: request });
export const sendEvents = (events) => ask("/v1/events", { body: { events } });
export const session = (user_id) => ask(`/v1/sessions/${encodeURIComponent(user_id)}`);
export const status = () => ask("/v1/status");

/** Hands events to the browser to be sent even though the page goes away; false where it refused. */
export function beacon(events) {
  const body = new Blob([JSON.stringify({ events })], { type: "application/json" });
  return navigator.sendBeacon?.("/v1/events", body) ?? false;
}
