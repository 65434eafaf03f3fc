// Entry point of the control room: reads the key from the URL, receives pictures, and draws all panels.

import { bind, valueOf } from "./bind.js";
import { Charts } from "./chart.js";
import { drawLines } from "./lines.js";
import { drawForgetting } from "./forgetting.js";
import { Flow } from "./flow.js";
import { bindFolds } from "./fold.js";
import { bindForms } from "./inspect.js";
import { drawPanels } from "./panels.js";
import { beginRuler, drawRuler } from "./ruler.js";
import { listen } from "./stream.js";
import { bindTips } from "./tips.js";
import { drawExperiments } from "./experiments.js";
import { part, put, storageOf } from "./dom.js";

const KEY = "control.key";
const HEADLINE = ["recsys_click_to_session_p95_ms", "recsys_click_to_served_p95_ms"];
const RETRY_MS = [400, 800, 1500, 3000];
const room = document.getElementById("room"), gate = document.getElementById("gate");
const charts = new Charts(), flow = new Flow(document.querySelector(".flow"));
const storage = storageOf("sessionStorage");
let key = storage?.getItem(KEY) ?? "";
const keep = given => { key = given; storage?.setItem(KEY, given); };
let frozen = false, failures = 0, connection = new AbortController();

function takeKey() {
  const given = location.hash.slice(1);
  if (/^[\w-]{20,}$/.test(given)) {
    keep(given);
    history.replaceState(null, "", location.pathname);
  }
  return key;
}

function showLink(link, text) {
  document.body.dataset.link = link;
  put(part("link"), text);
}

function showGate(title, text, form) {
  put(part("gate-title"), title);
  put(part("gate-text"), text);
  part("gate-form").hidden = !form;
  gate.hidden = false;
  room.hidden = true;
}

function draw(picture) {
  room.picture = picture;
  if (room.hidden) { room.hidden = false; gate.hidden = true; }
  put(part("app"), picture.panels.app);
  drawPanels(picture);
  drawLines(picture);
  drawExperiments(picture);
  charts.draw(picture);
  drawForgetting(picture);
  beginRuler();
  drawHeadline(picture);
  bind(picture);
  drawRuler(picture);
  flow.update(picture);
  room.dataset.number = picture.number;
}

/** Shows the parts of the headline whose numbers are known. */
function drawHeadline(picture) {
  document.getElementById("loop").dataset.said = HEADLINE.filter(series => valueOf(picture, series, "ms") !== null).length;
}

function receive(name, data) {
  failures = 0;
  if (name === "curves") return charts.begin(JSON.parse(data));
  if (name === "full") return showGate("Too many open pages", data, false);
  if (name === "trouble") return showLink("trouble", "no data at the moment");
  const picture = JSON.parse(data), { running } = picture.panels;
  charts.add(picture);
  if (frozen) return undefined;
  showLink(running ? "live" : "down", running ? "live" : "the system is down");
  return draw(picture);
}

async function stayConnected() {
  for (;;) {
    connection = new AbortController();
    try {
      await listen("/control/api/stream", takeKey(), receive, connection.signal);
    } catch (error) {
      if (error.status === 401) {
        const hadKey = key;
        keep("");
        showLink("locked", "locked");
        showGate(hadKey ? "The key is wrong" : "Enter the key", "The key is in STATE/run/control.key, and at the end of the link that recsys demo prints.", true);
        return;
      }
    }
    const hidden = document.hidden;
    if (!hidden) showLink("lost", room.hidden ? "connecting" : "connection lost, trying again");
    if (room.hidden && failures > 1) showGate("No answer", "The control room is unreachable. Retrying every few seconds.", false);
    await (hidden ? visible() : new Promise(resolve => setTimeout(resolve, RETRY_MS[Math.min(failures, RETRY_MS.length - 1)])));
    failures += 1;
  }
}

/** Resolves when the page is visible: hidden pages cause no work on the server. */
function visible() {
  return new Promise(resolve => {
    const check = () => { if (!document.hidden) { document.removeEventListener("visibilitychange", check); resolve(); } };
    document.addEventListener("visibilitychange", check);
    check();
  });
}

function freeze() {
  frozen = !frozen;
  const button = document.querySelector("[data-act=freeze]");
  button.setAttribute("aria-pressed", String(frozen));
  put(button, frozen ? "Resume" : "Freeze");
  document.body.classList.toggle("frozen", frozen);
  flow.pause(frozen);
  if (frozen) showLink("frozen", "frozen");
}

document.querySelector("[data-act=freeze]").addEventListener("click", freeze);
document.addEventListener("keydown", event => {
  if (event.key.toLowerCase() === "p" && !event.ctrlKey && !event.metaKey && !/INPUT/.test(event.target.tagName)) freeze();
});
document.addEventListener("visibilitychange", () => { if (document.hidden) connection.abort(); });
part("gate-form").addEventListener("submit", event => {
  event.preventDefault();
  const field = document.getElementById("key");
  keep(field.value.trim());
  field.value = "";
  stayConnected();
});
window.addEventListener("hashchange", () => { if (takeKey() && !gate.hidden) stayConnected(); });
bindForms(() => key);
bindTips();
bindFolds(room);
showGate("The control room", "Connecting to the system.", false);
stayConnected();
