// The viewer's random id, stored in this browser until it is renewed.

import { uuid } from "./events.js";

const STORE = "swipe.viewer";

export class Viewer {
  constructor() {
    this.id = read(STORE) ?? this.#make();
  }

  /** Becomes a new, unknown viewer. */
  renew() {
    this.id = this.#make();
  }

  #make() {
    const id = `web-${uuid().slice(0, 13)}`;
    write(STORE, id);
    return id;
  }
}

/** Reads a setting from local storage; null if absent or storage is forbidden. */
export function read(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function write(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // private browsing may forbid it: the value then lasts as long as the page
  }
}
