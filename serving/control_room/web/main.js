// The control room: takes the key from the address, listens, and has each panel draw the picture.

import { bind, valueOf } from "./bind.js";
import { Charts } from "./chart.js";
import { drawLines } from "./lines.js";
import { drawForgetting } from "./forgetting.js";
import { Flow } from "./flow.js";
import { watchForms } from "./inspect.js";
import { drawPanels } from "./panels.js";
import { beginRuler, drawRuler } from "./ruler.js";
import { listen } from "./stream.js";
import { watchTips } from "./tips.js";
import { drawTrials } from "./trials.js";
import { part, put } from "./dom.js";

const KEY = "control.key";
const SAID = ["recsys_click_to_session_p95_ms", "recsys_click_to_served_p95_ms"];
const AGAIN_MS = [400, 800, 1500, 3000];
const room = document.getElementById("room"), gate = document.getElementById("gate");
const charts = new Charts(), flow = new Flow(document.querySelector(".flow"));
let frozen = false, missed = 0, leaving = new AbortController();

function takeKey() {
  const given = location.hash.slice(1);
  if (/^[\w-]{20,}$/.test(given)) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) ?? "";
}

function show(link, said) {
  document.body.dataset.link = link;
  put(part("link"), said);
}

function ask(title, text, form) {
  put(part("gate-title"), title);
  put(part("gate-text"), text);
  part("gate-form").hidden = !form;
  gate.hidden = false;
  room.hidden = true;
}

function draw(picture) {
  room.picture = picture;
  if (room.hidden) { room.hidden = false; gate.hidden = true; }
  drawPanels(picture);
  drawLines(picture);
  drawTrials(picture);
  charts.draw(picture);
  drawForgetting(picture);
  beginRuler();
  sayHow(picture);
  bind(picture);
  drawRuler(picture);
  flow.tell(picture);
  room.dataset.number = picture.number;
}

/** The sentence at the top says as much as is known. */
function sayHow(picture) {
  const known = SAID.filter(series => valueOf(picture, series, "ms") !== null).length;
  document.getElementById("loop").dataset.said = known;
}

function hear(name, data) {
  missed = 0;
  if (name === "curves") return charts.begin(JSON.parse(data));
  if (name === "full") { ask("Too many look", data, false); return undefined; }
  if (name === "trouble") return show("trouble", "no picture just now");
  const picture = JSON.parse(data);
  charts.add(picture);
  if (!frozen) {
    show("live", picture.panels.running ? "live" : "the system is down");
    if (!picture.panels.running) document.body.dataset.link = "down";
    draw(picture);
  }
  return undefined;
}

async function stay() {
  for (;;) {
    leaving = new AbortController();
    try {
      await listen("/control/api/stream", takeKey(), hear, leaving.signal);
    } catch (error) {
      if (error.status === 401) {
        const had = sessionStorage.getItem(KEY);
        sessionStorage.removeItem(KEY);
        show("locked", "locked");
        ask(had ? "That key doesn't fit" : "A key, please", "It stands in state/run/control.key of the system, and at the end of the link that recsys demo prints.", true);
        return;
      }
    }
    const hidden = document.hidden;
    if (!hidden) show("lost", room.hidden ? "connecting" : "connection lost, trying again");
    if (room.hidden && missed > 1) ask("Nobody answers", "The control room isn't reachable. It is tried again every few seconds.", false);
    await (hidden ? seen() : new Promise(resolve => setTimeout(resolve, AGAIN_MS[Math.min(missed, AGAIN_MS.length - 1)])));
    missed += 1;
  }
}

/** Until the page is looked at: nobody who doesn't look has pictures made. */
function seen() {
  return new Promise(resolve => {
    const look = () => { if (!document.hidden) { document.removeEventListener("visibilitychange", look); resolve(); } };
    document.addEventListener("visibilitychange", look);
    look();
  });
}

function freeze() {
  frozen = !frozen;
  const button = document.querySelector("[data-act=freeze]");
  button.setAttribute("aria-pressed", String(frozen));
  put(button, frozen ? "Go on" : "Freeze");
  document.body.classList.toggle("frozen", frozen);
  flow.hold(frozen);
  if (frozen) show("frozen", "frozen");
}

document.querySelector("[data-act=freeze]").addEventListener("click", freeze);
document.addEventListener("keydown", event => {
  if (event.key.toLowerCase() === "p" && !event.ctrlKey && !event.metaKey && !/INPUT/.test(event.target.tagName)) freeze();
});
document.addEventListener("visibilitychange", () => { if (document.hidden) leaving.abort(); });
part("gate-form").addEventListener("submit", event => {
  event.preventDefault();
  const field = document.getElementById("key");
  sessionStorage.setItem(KEY, field.value.trim());
  field.value = "";
  stay();
});
window.addEventListener("hashchange", () => { if (takeKey() && !gate.hidden) stay(); });
watchForms(() => sessionStorage.getItem(KEY) ?? "");
watchTips();
ask("The control room", "Connecting to the system.", false);
stay();
