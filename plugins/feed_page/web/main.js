// Entry point: loads the app's definition and connects the modules of the page.

import { block, now } from "./api.js";
import { loadApp } from "./app.js";
import { buttonsOf, iconOf, showDone } from "./buttons.js";
import { burst } from "./card.js";
import { Drawer } from "./drawer.js";
import { Outbox } from "./events.js";
import { Feed } from "./feed.js";
import { dragToClose, listen } from "./gestures.js";
import { make } from "./dom.js";
import { Learning } from "./learning.js";
import { List } from "./list.js";
import { Notices } from "./notices.js";
import { Player } from "./player.js";
import { read, userToken, write } from "./storage.js";
import { Viewer } from "./viewer.js";

const find = (selector) => document.querySelector(selector);
const rail = find(".rail");
const progress = find(".progress i");
const UNDO_MS = 5_000;

const notices = new Notices();
const app = await loadApp(() => {
  find(".end").dataset.state = "failed";
  notices.feed("failed");
});
const isList = app.layout === "list";
document.body.dataset.layout = app.layout;
document.title = app.name;
if (isList) notices.ofList();
for (const place of document.querySelectorAll('[data-part="app"]')) place.textContent = app.name;

const viewer = new Viewer();
const outbox = new Outbox();
const learning = new Learning({ viewer, views: app.shown === "view" });
const drawer = new Drawer(app, find(".drawer"));
const player = new Player({ report, tick });
let opened = false; // explanations cost server time: requested only once the drawer was opened
const explain = () => opened;
const feed = isList
  ? new List({ app, root: find(".list"), viewer, explain, report })
  : new Feed({ app, stage: find(".stage"), player, viewer, explain });
let held = null; // the item that was hidden last, while that can be undone: {entry, event, timer}
let wanted = null; // the item that was engaged with last, until an answer says what came of it
rail.prepend(...buttonsOf(app));

const eventOf = (entry, kind) => ({
  ...(entry.request_id ? { request_id: entry.request_id, token: entry.token } : {}),
  surface: isList ? "list" : "feed", user_id: viewer.id, item_id: entry.item.item_id, kind,
});

/** Sends an engagement, if the app takes events of its kind. */
function report(entry, kind, watch_ms) {
  if (kind !== "seen" && !app.has(kind)) return;
  outbox.add({ ...eventOf(entry, kind), ...(watch_ms === undefined ? {} : { watch_ms }) });
  if (kind === (isList ? app.opens : "view")) drawer.left(entry);
}

function tick(entry, share, scene) {
  progress.style.transform = `scaleX(${share})`;
  entry.element.dataset.scene = String(scene);
}

function refresh() {
  showDone(rail.querySelectorAll("button"), feed.current);
  if (isList) feed.refresh();
}

const actions = {
  next: () => feed.go(1),
  previous: () => feed.go(-1),
  pause() {
    player.pause(!player.paused);
    feed.current?.element.classList.toggle("paused", player.paused);
  },
  /** Reports an engagement with the item on screen, once. One that is negative hides the item. */
  engage(kind) {
    const entry = feed.current;
    const button = app.buttons.find((one) => one.kind === kind);
    if (!entry || entry.did.has(kind)) return;
    if (button.isNegative) return hide(entry, button);
    entry.did.add(kind);
    entry.acted = true;
    report(entry, kind);
    wanted = entry;
    refresh();
    notices.say(button.name);
  },
  /** Two taps on a card. */
  like(point) {
    const { current } = feed;
    if (!current || !app.liked) return;
    actions.engage(app.liked.kind);
    burst(current, iconOf(app.liked), point?.x, point?.y);
  },
  more() {
    const entry = feed.current;
    const caption = entry?.element.querySelector(".caption");
    if (!caption) return;
    caption.setAttribute("aria-expanded", String(caption.getAttribute("aria-expanded") !== "true"));
    if (!app.opens || entry.did.has(app.opens)) return;
    entry.did.add(app.opens);
    entry.acted = true;
    report(entry, app.opens);
  },
  undo() {
    if (!held) return;
    const { entry, event, timer } = held;
    held = null;
    clearTimeout(timer);
    entry.did.delete(event.kind);
    entry.acted = entry.did.size > 0;
    entry.element.classList.remove("hidden");
    notices.say("Undone: it counts for nothing");
    if (feed.current !== entry) player.leave(false); // the item in between wasn't skipped
    feed.show(entry);
  },
  async block() {
    const entry = feed.current;
    if (!entry?.group || entry.did.has("block")) return;
    entry.did.add("block");
    try {
      await block(viewer.id, entry.group);
    } catch {
      entry.did.delete("block");
      return notices.say("That didn’t work: try again");
    }
    notices.say(`${entry.group.value} is blocked`);
    feed.outdate();
    moveOn(entry);
  },
  renew: () => feed.restart(),
  drawer: () => openDrawer(document.body.dataset.drawer !== "open"),
  help: () => notices.help(),
  close() {
    if (!notices.closeHelp()) openDrawer(false);
  },
};

/** Hides the item at once, and says so to the server when it is too late to undo it. */
function hide(entry, { kind, name }) {
  sendHidden();
  entry.did.add(kind);
  entry.acted = true;
  held = { entry, event: { ...eventOf(entry, kind), time_ms: now() }, timer: setTimeout(sendHidden, UNDO_MS) };
  entry.element.classList.add("hidden");
  if (player.paused) actions.pause();
  notices.say(name, UNDO_MS, true);
  setTimeout(() => held?.entry === entry && feed.current === entry && feed.go(1), 300);
}

function sendHidden() {
  if (!held) return;
  clearTimeout(held.timer);
  outbox.add(held.event);
  held = null;
}

/** After an engagement: says which of the item's values the most new items share, where the drawer doesn't. */
function showWanted({ items = [] }) {
  const counts = wanted.looks.values.map(({ value }) => ({
    value, more: items.filter((item) => app.valuesOf(item).some((one) => one.value === value)).length,
  }));
  wanted = null;
  const [most] = counts.sort((a, b) => b.more - a.more);
  if (most?.more && document.body.dataset.drawer !== "open") notices.say(`More ${most.value}: ${most.more} of the next ${items.length}`);
}

/** After a block: waits briefly for an answer that reflects it, then moves on in any case. */
function moveOn(entry) {
  const go = () => {
    clearTimeout(late);
    feed.removeEventListener("answer", soon);
    if (feed.current === entry) feed.go(1);
  };
  const soon = () => setTimeout(go, 60);
  const late = setTimeout(go, 800);
  feed.addEventListener("answer", soon, { once: true });
}

function showCurrent(entry) {
  rail.toggleAttribute("inert", !entry);
  refresh();
  drawer.explain(entry);
  progress.style.transform = "scaleX(0)";
  if (!entry) return;
  notices.degraded(entry.degraded);
  entry.looks.palette.colours.forEach((colour, i) => document.body.style.setProperty(`--room${i + 1}`, colour));
}

function openDrawer(open) {
  opened ||= open;
  document.body.dataset.drawer = open ? "open" : "closed";
  find(".drawer").toggleAttribute("inert", !open);
  for (const button of document.querySelectorAll(".glance")) button.setAttribute("aria-expanded", String(open));
  write("feed.drawer", open ? "open" : "closed");
  learning.watch(open && document.visibilityState === "visible");
  if (open && !isList && feed.current && !feed.current.item.reasons) feed.ask("tail");
}

/** Shows the controls once, at the first visit. */
function hint() {
  if (isList || read("feed.hinted")) return;
  write("feed.hinted", "yes");
  const touch = matchMedia("(pointer: coarse)").matches;
  const like = app.liked ? `: ${app.liked.name}` : "";
  notices.say(touch ? `Swipe up; tap twice${like}` : "↓ for the next, ? for all keys", 5_000);
}

function newViewer() {
  player.leave(false); // the last view belongs to the old viewer
  sendHidden();
  viewer.renew();
  learning.forget();
  drawer.viewer(viewer.id);
  showCurrent(null);
  feed.restart();
  notices.say("A new viewer, of whom nothing is known");
}

feed.addEventListener("current", ({ detail }) => showCurrent(detail));
feed.addEventListener("answer", ({ detail }) => {
  notices.answered(detail);
  if (wanted) showWanted(detail);
});
feed.addEventListener("state", ({ detail }) => {
  notices.feed(detail);
  if (detail === "ready") hint();
});
outbox.addEventListener("accepted", ({ detail }) => {
  feed.accepted(detail);
  learning.accepted(detail);
});
outbox.addEventListener("state", ({ detail }) => notices.outbox(detail));
learning.addEventListener("session", ({ detail }) => drawer.session(detail));
learning.addEventListener("status", ({ detail }) => {
  drawer.model(detail);
  notices.version(detail.version);
});
learning.addEventListener("track", ({ detail }) => drawer.learned(detail));

document.addEventListener("visibilitychange", () => {
  const visible = document.visibilityState === "visible";
  player.pageVisible(visible);
  learning.watch(visible && document.body.dataset.drawer === "open");
  if (!visible) sendHidden();
  if (!visible) outbox.farewell();
});
addEventListener("pagehide", () => {
  player.leave(false);
  sendHidden();
  outbox.farewell();
});
addEventListener("pageshow", (event) => event.persisted && outbox.hurry());
addEventListener("online", () => {
  notices.network(true);
  outbox.hurry();
  if (find(".end").dataset.state === "failed") feed.ask("more");
});
addEventListener("offline", () => notices.network(false));
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-act]");
  const act = button?.dataset.act;
  if (act === "retry") feed.ask("more");
  else if (act === "new-viewer") newViewer();
  else if (act) actions[act](button.dataset.kind);
});

listen({ app, stage: find(".stage"), act: (word, of) => actions[word]?.(of) });
find(".help dl").append(...[...app.buttons.map(({ key, name }) => [key.toUpperCase(), name]), ...(app.groups.length ? [["B", "Block"]] : []), ["U", "Undo"], ["D", "What it learned"]]
  .map(([key, name]) => make("div", "", make("dt", "", key), make("dd", "", name))));
dragToClose({ handle: find(".drawer header"), sheet: find(".drawer"), close: () => openDrawer(false) });
find(".fresh").hidden = userToken !== "";
drawer.viewer(viewer.id);
notices.network(navigator.onLine);
showCurrent(null);
const wide = matchMedia("(min-width: 1100px)").matches;
openDrawer((read("feed.drawer") ?? (wide ? "open" : "closed")) === "open" && wide);
feed.restart();
