// Entry point: connects the modules of the page.

import { block, now } from "./api.js";
import { burst } from "./card.js";
import { Drawer } from "./drawer.js";
import { Outbox } from "./events.js";
import { Feed } from "./feed.js";
import { dragToClose, listen } from "./gestures.js";
import { Learning } from "./learning.js";
import { nameOf } from "./names.js";
import { Notices } from "./notices.js";
import { Player } from "./player.js";
import { read, userToken, write } from "./storage.js";
import { topicOf } from "./topics.js";
import { Viewer } from "./viewer.js";

const find = (selector) => document.querySelector(selector);
const stage = find(".stage");
const rail = find(".rail");
const progress = find(".progress i");

const viewer = new Viewer();
const outbox = new Outbox();
const learning = new Learning(viewer);
const drawer = new Drawer(find(".drawer"));
const notices = new Notices();
const player = new Player({ report, tick });
const feed = new Feed({ stage, player, viewer, explain: () => opened });
let opened = false; // explanations cost server time: requested only once the drawer was opened
let shown = null; // the entry that the rail shows
let held = null; // the item that was hidden last, while that can be undone: {entry, event, timer}
let wanted = null; // topic of the newest like, until an answer says what came of it
const UNDO_MS = 5_000;

const eventOf = (entry, kind) => ({
  request_id: entry.request_id, token: entry.token, user_id: viewer.id, item_id: entry.item.item_id, kind,
});

function report(entry, kind, watch_ms) {
  outbox.add({ ...eventOf(entry, kind), ...(watch_ms === undefined ? {} : { watch_ms }) });
  if (kind === "view") drawer.swiped(entry);
}

function tick(entry, share, scene) {
  progress.style.transform = `scaleX(${share})`;
  entry.element.dataset.scene = String(scene);
}

/** Reports an engagement with the item on screen once; true the first time. */
function engage(kind) {
  const entry = feed.current;
  if (!entry || entry.did.has(kind)) return false;
  entry.did.add(kind);
  entry.acted = true;
  report(entry, kind);
  showRail(entry);
  return true;
}

const actions = {
  next: () => feed.go(1),
  previous: () => feed.go(-1),
  pause() {
    player.pause(!player.paused);
    feed.current?.element.classList.toggle("paused", player.paused);
  },
  like(point) {
    const entry = feed.current;
    if (!entry) return;
    if (engage("like")) wanted = entry.cover.topic.name;
    burst(entry, point?.x, point?.y);
  },
  share: () => engage("share") && notices.say("Shared. More like this, then."),
  follow: () => engage("follow") && notices.say(`Following @${feed.current.handle}`),
  more() {
    const caption = feed.current?.element.querySelector(".caption");
    if (!caption) return;
    caption.setAttribute("aria-expanded", String(caption.getAttribute("aria-expanded") !== "true"));
    engage("click");
  },
  /** Hides the item at once, and says so to the server when it is too late to undo it. */
  hide() {
    const entry = feed.current;
    if (!entry || entry.did.has("hide")) return;
    sendHidden();
    entry.did.add("hide");
    entry.acted = true;
    held = { entry, event: { ...eventOf(entry, "hide"), time_ms: now() }, timer: setTimeout(sendHidden, UNDO_MS) };
    entry.element.classList.add("hidden");
    if (player.paused) actions.pause();
    notices.say("Not for you. Got it.", UNDO_MS, true);
    setTimeout(() => held?.entry === entry && feed.current === entry && feed.go(1), 300);
  },
  undo() {
    if (!held) return;
    const { entry, timer } = held;
    held = null;
    clearTimeout(timer);
    entry.did.delete("hide");
    entry.acted = entry.did.size > 0;
    entry.element.classList.remove("hidden");
    notices.say("Undone. It counts for nothing.");
    if (feed.current !== entry) player.leave(false); // the item in between wasn't skipped
    feed.show(entry);
  },
  async block() {
    const entry = feed.current;
    const author = entry?.item.fields?.author;
    if (author == null || entry.did.has("block")) return;
    entry.did.add("block");
    try {
      await block(viewer.id, author);
    } catch {
      entry.did.delete("block");
      return notices.say("That didn't work. Try again.");
    }
    notices.say(`@${entry.handle} is blocked.`);
    feed.outdate();
    moveOn(entry);
  },
  drawer: () => openDrawer(document.body.dataset.drawer !== "open"),
  help: () => notices.help(),
  close() {
    if (!notices.closeHelp()) openDrawer(false);
  },
};

function sendHidden() {
  if (!held) return;
  clearTimeout(held.timer);
  outbox.add(held.event);
  held = null;
}

/** After a like: says how much of the topic came of it, where the drawer doesn't. */
function showWanted({ items = [] }) {
  const more = items.filter((item) => topicOf(item).name === wanted).length;
  if (more && document.body.dataset.drawer !== "open") notices.say(`More ${wanted}: ${more} of the next ${items.length}`);
  wanted = null;
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

function showRail(entry) {
  shown = entry;
  rail.toggleAttribute("inert", !entry);
  for (const button of rail.querySelectorAll("[aria-pressed]")) {
    button.setAttribute("aria-pressed", String(entry?.did.has(button.dataset.act) ?? false));
  }
  if (!entry) return;
  const { emoji, hue } = nameOf(entry.item.fields?.author ?? "someone");
  const face = rail.querySelector(".face");
  face.textContent = emoji;
  face.style.setProperty("--hue", String(hue));
  rail.querySelector('[data-act="follow"]').setAttribute("aria-label", `Follow ${entry.handle} (F)`);
}

function showCurrent(entry) {
  showRail(entry);
  drawer.explain(entry);
  progress.style.transform = "scaleX(0)";
  if (!entry) return;
  notices.degraded(entry.degraded);
  entry.cover.palette.colours.forEach((colour, i) => document.body.style.setProperty(`--room${i + 1}`, colour));
}

function openDrawer(open) {
  opened ||= open;
  document.body.dataset.drawer = open ? "open" : "closed";
  find(".drawer").toggleAttribute("inert", !open);
  find(".glance").setAttribute("aria-expanded", String(open));
  write("swipe.drawer", open ? "open" : "closed");
  learning.watch(open && document.visibilityState === "visible");
  if (open && feed.current && !feed.current.item.reasons) feed.ask("tail");
}

/** Shows the controls once, at the first visit. */
function hint() {
  if (read("swipe.hinted")) return;
  write("swipe.hinted", "yes");
  const touch = matchMedia("(pointer: coarse)").matches;
  notices.say(touch ? "Swipe up. Double tap what you like." : "↓ for the next, L to like, ? for all keys.", 5_000);
}

function newViewer() {
  player.leave(false); // the last view belongs to the old viewer
  sendHidden();
  viewer.renew();
  learning.forget();
  drawer.viewer(viewer.id);
  showCurrent(null);
  feed.restart();
  notices.say("Hello, stranger. The system knows nothing of you.");
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
  if (feed.end.dataset.state === "failed") feed.ask("more");
});
addEventListener("offline", () => notices.network(false));
document.addEventListener("click", (event) => {
  const act = event.target.closest("[data-act]")?.dataset.act;
  if (act === "retry") feed.ask("more");
  else if (act === "new-viewer") newViewer();
  else if (act) actions[act]();
});

listen({ stage, act: (word, point) => actions[word](point) });
dragToClose({ handle: find(".drawer header"), sheet: find(".drawer"), close: () => openDrawer(false) });
find(".fresh").hidden = userToken !== "";
drawer.viewer(viewer.id);
notices.network(navigator.onLine);
showRail(shown);
const wide = matchMedia("(min-width: 1100px)").matches;
openDrawer((read("swipe.drawer") ?? (wide ? "open" : "closed")) === "open" && wide);
feed.restart();
