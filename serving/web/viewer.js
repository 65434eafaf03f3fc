// Who watches: a random id that this browser keeps, until somebody asks to be new.

import { uuid } from "./events.js";

const STORE = "swipe.viewer";

export class Viewer {
  constructor() {
    this.id = read(STORE) ?? this.#make();
  }

  /** A viewer of whom the system knows nothing. */
  renew() {
    this.id = this.#make();
  }

  #make() {
    const id = `web-${uuid().slice(0, 13)}`;
    write(STORE, id);
    return id;
  }
}

/** Small settings that outlive the page; null where there is none or storage is forbidden. */
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
    // private browsing may forbid it: the value then lives as long as the page
  }
}
