// Small helpers: elements made, and changed only where something is different.

export const part = name => document.querySelector(`[data-part="${name}"]`);

/** el("b", {class: "x", data: {metric: "…"}}, "text", child, …): text is never read as markup. */
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "data") Object.assign(made.dataset, value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}

export function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** A number of the page: which sample, and how it is written. */
export const metric = (series, as, more = {}) => el(more.tag ?? "b", { data: { metric: series, as, ...more.data }, class: more.class }, "–");

export function put(element, text) {
  if (element && element.textContent !== text) element.textContent = text;
}

const drawn = new WeakMap();

/** Replaces what is inside, where what it is made of is different from last time. */
export function redraw(element, made, draw) {
  const key = JSON.stringify(made);
  if (drawn.get(element) === key) return false;
  drawn.set(element, key);
  element.replaceChildren(...draw());
  return true;
}
