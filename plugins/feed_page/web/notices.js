// Notices at the edge of the screen: offline, degraded answers, toasts, the model's step, key bindings.

import { count } from "./drawer.js";

const TOAST_MS = 2_200;
const DEGRADED = {
  session: "without your history", model: "popular only", rank: "unranked", retrieval: "fewer candidates",
  "rank:none": "unranked", "rank:short": "fewer ranked", "retrieval:popular": "popular only", stale: "older model",
};

export class Notices {
  constructor() {
    const find = (selector) => document.querySelector(selector);
    this.toast = find(".toast");
    this.undo = find(".undo");
    this.banner = find(".banner");
    this.glance = find(".glance .step");
    this.pill = find(".degraded");
    this.helpBox = find(".help");
    this.endText = find(".end p");
    this.online = true;
    this.waiting = 0;
    this.failing = false;
    this.feedFailing = false;
  }

  /** Where a list is shown, what is said stands beside it. */
  ofList() {
    const find = (selector) => document.querySelector(selector);
    this.endText = find('[data-list="message"]');
    this.glance = find(".list .glance .step");
    find(".list header").append(this.pill);
    document.body.append(this.banner, find(".toast"));
  }

  /** `undoable`: with a button that takes back what the text is about. */
  say(text, for_ms = TOAST_MS, undoable = false) {
    this.toast.querySelector("span").textContent = text;
    this.toast.classList.add("here");
    this.undo.hidden = !undoable;
    clearTimeout(this.leaving);
    this.leaving = setTimeout(() => {
      this.toast.classList.remove("here");
      this.undo.hidden = true;
    }, for_ms);
  }

  network(online) {
    this.online = online;
    this.#banner();
  }

  outbox({ waiting, failing }) {
    Object.assign(this, { waiting, failing });
    this.#banner();
  }

  feed(state) {
    if (state === "ready" || state === "empty") this.feedFailing = false;
    if (state === "failed") this.feedFailing = true;
    const words = {
      first: "Finding something for you", more: "Finding the next one", ready: "",
      empty: "That was everything", failed: "No list now",
    };
    this.endText.textContent = words[state] ?? "";
    this.#banner();
  }

  answered(answer) {
    this.version(answer.stamp);
  }

  version(version) {
    if (version?.step !== undefined) this.glance.textContent = `step ${count(version.step)}`;
  }

  /** Shows the stages that the answer skipped. */
  degraded(stages) {
    this.pill.hidden = stages.length === 0;
    this.pill.textContent = stages.map((stage) => DEGRADED[stage] ?? stage.replaceAll("_", " ")).join(" · ");
    this.pill.title = `This answer was degraded: ${stages.join(", ")}`;
  }

  help() {
    this.helpBox.hidden = !this.helpBox.hidden;
  }

  /** Closes the help; returns whether it was open. */
  closeHelp() {
    const open = !this.helpBox.hidden;
    this.helpBox.hidden = true;
    return open;
  }

  #banner() {
    const queued = this.waiting ? ` ${this.waiting} ${this.waiting === 1 ? "event is" : "events are"} kept and sent later.` : "";
    const text = !this.online ? `You are offline.${queued}`
      : this.failing || this.feedFailing ? `The server doesn’t answer. Trying again.${queued}` : "";
    this.banner.textContent = text;
    this.banner.hidden = !text;
  }
}
