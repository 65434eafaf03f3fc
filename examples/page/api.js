// Calls of the API with fetch. clients/typescript does more: retries, batches, views, events that survive a
// closed page.

/** Id of this browser's visitor; `?user=` in the address names another. */
export const userId = new URLSearchParams(location.search).get("user") ?? storedId();

function storedId() {
  const stored = localStorage.getItem("user") ?? `guest-${crypto.randomUUID().slice(0, 8)}`;
  localStorage.setItem("user", stored);
  return stored;
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

/** Reports an engagement with an item of a list. `keepalive`: it arrives although the page changes. */
export function report(list, itemId, kind, surface) {
  const event = {
    type: "engagement", kind, surface, user_id: userId, item_id: itemId, time_ms: Date.now(),
    request_id: list.request_id, token: list.token, event_id: crypto.randomUUID(),
  };
  return call("/v1/events", { events: [event] }, { keepalive: true });
}

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}
