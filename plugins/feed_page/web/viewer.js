// The viewer: the user of the page's token, or the one of the address (`?user=u3`), or a random id, stored in this
// browser until it is renewed.

import { uuid } from "./events.js";
import { read, subjectOf, userToken, write } from "./storage.js";

const STORE = "feed.viewer";

export class Viewer {
  constructor() {
    const asked = new URLSearchParams(location.search).get("user");
    this.id = userToken ? subjectOf(userToken) : asked || (read(STORE) ?? this.#make());
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
