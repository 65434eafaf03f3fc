// Items as a list of tiles: a page of them, and the item that is open with those similar to it. Going back asks for a
// new list, which reflects what was done.

import { recommend, similar } from "./api.js";
import { buttonsOf, showDone } from "./buttons.js";
import { chips, entryOf } from "./card.js";
import { make } from "./dom.js";
import { paint } from "./looks.js";

const PAGE = 12;
const SIMILAR = 8;
const SHOWN_SHARE = 0.6; // of a tile must be on screen ...
const SHOWN_MS = 1_000; // ... for so long to be a view

export class List extends EventTarget {
  /** Emits "current" (detail: the open entry or null), "answer" and "state", as Feed does. `report(entry, kind)`
   * sends an engagement. */
  constructor({ app, root, viewer, explain, report }) {
    super();
    Object.assign(this, { app, root, viewer, explain, report });
    this.part = (name) => root.querySelector(`[data-list="${name}"]`);
    this.current = null;
    this.generation = 0;
    this.buttons = buttonsOf(app, { labelled: true });
    this.part("buttons").replaceChildren(...this.buttons);
    this.watcher = new IntersectionObserver((seen) => this.#seen(seen), { threshold: [0, SHOWN_SHARE] });
    document.addEventListener("visibilitychange", () => this.#confirm());
  }

  restart() {
    return this.ask();
  }

  /** Requests a list, and closes the item that is open. */
  async ask() {
    this.generation += 1;
    const { generation } = this;
    this.#show(null);
    clearTimeout(this.retrying);
    this.#state("first");
    try {
      const device = matchMedia("(pointer: coarse)").matches ? "phone" : "desktop";
      const query = { user_id: this.viewer.id, n: PAGE, surface: "list", context: { device }, explain: this.explain() };
      const answer = await recommend(query);
      if (generation !== this.generation) return;
      this.failures = 0;
      this.#fill(this.part("items"), answer);
      this.unconfirmed = this.app.shown === "list" && this.entries[0];
      this.#confirm();
      this.dispatchEvent(new CustomEvent("answer", { detail: answer }));
      this.#state(this.entries.length ? "ready" : "empty");
    } catch (error) {
      if (generation !== this.generation) return;
      this.failures = (this.failures ?? 0) + 1;
      this.#state("failed");
      const wait_ms = Math.max(error.retryAfter_ms ?? 0, Math.min(15_000, 700 * 2 ** this.failures));
      this.retrying = setTimeout(() => this.ask(), wait_ms);
    }
  }

  /** Opens an item: reports it, and lists those similar to it. */
  async open(entry) {
    if (this.app.opens && !entry.did.has(this.app.opens)) {
      entry.did.add(this.app.opens);
      this.report(entry, this.app.opens);
    }
    this.#show(entry);
    this.part("similar").replaceChildren();
    const { items } = await similar(entry.item.item_id, SIMILAR).catch(() => ({ items: [] }));
    if (this.current !== entry) return;
    this.#fill(this.part("similar"), { items }); // the same for all: no list of this viewer, so without a request
    this.part("similar-heading").hidden = items.length === 0;
  }

  /** Shows the buttons' state anew. */
  refresh() {
    showDone(this.buttons, this.current);
  }

  /** What was done shows in the next list. */
  accepted() {}

  outdate() {}

  /** Goes back to a new list. */
  go() {
    if (this.current) this.ask();
  }

  show(entry) {
    this.#show(entry);
  }

  #show(entry) {
    this.current = entry;
    this.part("item").hidden = !entry;
    this.part("items").hidden = Boolean(entry);
    this.part("similar").hidden = this.part("similar-heading").hidden = !entry;
    if (entry) {
      const { title, text, price } = entry.looks;
      for (const [name, value] of Object.entries({ title, text, price })) this.part(name).textContent = value;
      this.part("chips").replaceChildren(chips(entry));
      paint(this.part("cover"), entry.looks, false);
      this.refresh();
      scrollTo({ top: 0 });
      this.part("title").focus({ preventScroll: true });
    }
    this.dispatchEvent(new CustomEvent("current", { detail: entry }));
  }

  #fill(list, answer) {
    const entries = (answer.items ?? []).map((item) => entryOf(this.app, item, answer, (entry) => this.#tile(entry)));
    this.watcher.disconnect();
    if (list === this.part("items")) this.entries = entries;
    list.replaceChildren(...entries.map(({ element }) => element));
    if (this.app.shown === "view") for (const { element } of entries) this.watcher.observe(element);
    this.byTile = new Map(entries.map((entry) => [entry.element, entry]));
  }

  #tile(entry) {
    const { title, price } = entry.looks;
    const cover = make("span", "cover");
    cover.setAttribute("aria-hidden", "true");
    paint(cover, entry.looks, false);
    const words = make("span", "text", make("strong", "", title), ...(price ? [make("span", "price", price)] : []), chips(entry));
    const tile = make("button", "tile", cover, words);
    tile.type = "button";
    tile.dataset.item = String(entry.item.item_id);
    tile.addEventListener("click", () => this.open(entry));
    return make("li", "", tile);
  }

  /** Says that the list is on the screen: without it, or an engagement, its items don't count as shown. */
  #confirm() {
    if (!this.unconfirmed || document.visibilityState !== "visible") return;
    this.report(this.unconfirmed, "seen");
    this.unconfirmed = null;
  }

  #seen(changes) {
    for (const { target, intersectionRatio } of changes) {
      const entry = this.byTile.get(target);
      clearTimeout(entry?.timer);
      if (!entry || entry.viewed || intersectionRatio < SHOWN_SHARE) continue;
      entry.timer = setTimeout(() => {
        if (document.visibilityState !== "visible") return;
        entry.viewed = true;
        this.report(entry, "view", SHOWN_MS);
      }, SHOWN_MS);
    }
  }

  #state(word) {
    this.root.setAttribute("aria-busy", String(word === "first"));
    this.dispatchEvent(new CustomEvent("state", { detail: word }));
  }
}
