// Calls of the API with fetch. clients/typescript does more: retries, batches, views, events that survive a
// closed page, times by the server's clock.

/** Id of this browser's visitor; `?user=` in the address names another. */
export const userId = new URLSearchParams(location.search).get("user") ?? storedId();

function storedId() {
  const fresh = `guest-${randomId().slice(0, 8)}`;
  try {
    localStorage.user ??= fresh;
    return localStorage.user;
  } catch {
    return fresh; // storage is forbidden: for this page alone
  }
}

/** crypto.randomUUID exists on https and localhost only, not on a LAN address. */
function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function call(path, body, options = {}) {
  const headers = { "content-type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(body), ...options });
  if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
  return answer.json();
}

/** A list for this visitor. */
export function recommend(request) {
  return call("/v1/recommend", { user_id: userId, ...request });
}

/** Reports an engagement with an item of a list; throws if it is rejected, as where the device's clock is ahead.
 * `keepalive`: it arrives although the page changes. */
export async function report(list, itemId, kind, surface) {
  const event = {
    type: "engagement", kind, surface, user_id: userId, item_id: itemId, time_ms: Date.now(),
    request_id: list.request_id, token: list.token, event_id: randomId(),
  };
  const receipt = await call("/v1/events", { events: [event] }, { keepalive: true });
  const error = receipt.results[0].error;
  if (error) throw new Error(`${error.field} is ${error.value}, expected ${error.expected}`);
  return receipt;
}

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}
