// Helpers that create elements, and update them only where something changed; the browser's storage.

export const part = name => document.querySelector(`[data-part="${name}"]`);

/** el("b", {class: "x", data: {metric: "…"}}, "text", child, …): text is never parsed as markup. */
export function el(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "data") Object.assign(element.dataset, value);
    else if (value !== null && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter(child => child !== null && child !== undefined));
  return element;
}

export function svg(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** An element that shows a sample, in a format of `AS`. */
export const metric = (series, as, more = {}) => el(more.tag ?? "b", { data: { metric: series, as, ...more.data }, class: more.class }, "–");

export function put(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

const drawn = new WeakMap();

/** Replaces the children if their data changed since the last call. */
export function redraw(element, data, draw) {
  const key = JSON.stringify(data);
  if (drawn.get(element) === key) return false;
  drawn.set(element, key);
  element.replaceChildren(...draw());
  return true;
}

/** A storage of the window, such as "localStorage"; null where the browser forbids it. */
export function storageOf(name) {
  try { return window[name]; } catch { return null; }
}
