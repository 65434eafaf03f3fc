// The app's definition: kinds of engagement and their names, and what to show of an item.

import { definition } from "./api.js";

const RESERVED = "bdjku?"; // keys of the page itself
const ICONS = { like: "heart", share: "send", follow: "plus", save: "mark", bookmark: "mark", purchase: "bag", cart: "bag", comment: "bubble" };

export class App {
  constructor({ app, layout, shown, opens, kinds, fields, categories, groups }) {
    Object.assign(this, { layout, shown, opens, fields, categories, groups });
    this.name = readable(app);
    this.kinds = new Map(kinds.map((kind) => [kind.kind, kind]));
    const taken = new Set(RESERVED);
    this.buttons = kinds.filter((kind) => kind.button).map((kind) => {
      const key = [...kind.name.toLowerCase()].find((letter) => /[a-z]/.test(letter) && !taken.has(letter)) ?? "";
      taken.add(key);
      const isNegative = kind.label === "negative";
      return { ...kind, key, isNegative, icon: isNegative ? "nope" : ICONS[kind.kind] ?? "" };
    });
    this.strong = new Set([...kinds].filter((kind) => kind.label && kind.kind !== opens && kind.kind !== "view").map(({ kind }) => kind));
    this.main = kinds.find(({ label }) => label === "positive"); // what the model's first number is about
    // Two taps on a card: what is liked most plainly.
    this.liked = this.buttons.find(({ kind }) => kind === "like") ?? this.buttons.find(({ isNegative }) => !isNegative);
  }

  /** Whether the app takes events of a kind. */
  has(kind) {
    return this.kinds.has(kind) || (kind === "view" && this.shown === "view");
  }

  nameOf(kind) {
    return this.kinds.get(kind)?.name ?? readable(kind);
  }

  /** What an item has of a thing that the page shows, such as its title; undefined without it. */
  shownOf(item, thing) {
    const name = this.fields[thing].find((field) => (item.fields?.[field] ?? "") !== "");
    return name && item.fields[name];
  }

  /** Its values in fields of kind category and list, the groups first: [{field, value}]. */
  valuesOf(item) {
    const names = [...new Set([...this.groups, ...this.categories])];
    const all = names.flatMap((field) => [item.fields?.[field] ?? []].flat().map((value) => ({ field, value: String(value) })));
    const texts = new Set();
    return all.filter(({ value }) => value.trim() && !texts.has(value) && texts.add(value));
  }

  /** The group whose value a viewer may block: {field, value}, if the item has one. */
  groupOf(item) {
    const field = this.groups[0];
    const value = [item.fields?.[field] ?? []].flat()[0];
    return value === undefined ? undefined : { field, value: String(value) };
  }
}

/** Loads the definition; tries again, after growing waits or a click, until the server answers. `failed` is called
 * after each failure. */
export async function loadApp(failed) {
  for (let wait_ms = 500; ; wait_ms = Math.min(8_000, 2 * wait_ms)) {
    try {
      return new App(await definition());
    } catch {
      failed();
      await new Promise((done) => {
        setTimeout(done, wait_ms);
        document.addEventListener("click", done, { once: true });
      });
    }
  }
}

/** A name of the definition as words. */
export function readable(name) {
  return String(name).replaceAll("_", " ").trim() || String(name);
}
