// Animated bar chart: a ranked list whose rows slide to new places and stretch to new lengths.

import { make, reducedMotion, track } from "./dom.js";

export class Bars {
  constructor(list) {
    this.list = list;
    this.rows = new Map(); // key → {element, weight}
  }

  /** Shows rows of {key, label, icon, hue, weight}, largest first. New ones fade in, absent ones leave. */
  show(rows) {
    const before = this.#places();
    const largest = Math.max(1e-9, ...rows.map((row) => Math.abs(row.weight)));
    const seen = new Set(rows.map((row) => row.key));
    for (const [key, { element }] of this.rows) {
      if (!seen.has(key)) {
        element.remove();
        this.rows.delete(key);
      }
    }
    for (const row of rows) this.#row(row, largest);
    this.#slide(before);
  }

  #row({ key, label, icon, hue, weight }, largest) {
    let row = this.rows.get(key);
    if (!row) {
      row = { element: rowElement(icon, label, hue), weight: 0 };
      this.rows.set(key, row);
      requestAnimationFrame(() => row.element.classList.add("here"));
    }
    const { element } = row;
    const change = weight - row.weight;
    if (Math.abs(change) > 0.02 * largest) {
      element.dataset.change = change > 0 ? "up" : "down";
      clearTimeout(row.timer);
      row.timer = setTimeout(() => delete element.dataset.change, 2600);
    }
    row.weight = weight;
    element.classList.toggle("less", weight < 0);
    element.style.setProperty("--share", String(Math.abs(weight) / largest));
    element.querySelector(".value").textContent = weight.toFixed(Math.abs(weight) >= 10 ? 0 : 2);
    this.list.append(element);
  }

  #places() {
    return new Map([...this.rows].map(([key, { element }]) => [key, element.offsetTop]));
  }

  #slide(before) {
    if (reducedMotion()) return;
    for (const [key, { element }] of this.rows) {
      const by = (before.get(key) ?? element.offsetTop) - element.offsetTop;
      if (by) {
        element.animate(
          [{ transform: `translateY(${by}px)` }, { transform: "none" }],
          { duration: 520, easing: "cubic-bezier(.2,.9,.25,1)" },
        );
      }
    }
  }
}

function rowElement(icon, label, hue) {
  const parts = [["icon", icon], ["label", label], ["change", ""], ["value", ""]];
  const row = make("li", "bar", ...parts.map(([name, text]) => make("span", name, text)), track());
  row.style.setProperty("--hue", String(hue));
  return row;
}
