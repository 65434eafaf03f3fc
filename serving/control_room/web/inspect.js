// Inspection of one item or user on a replica. The query is not logged.

import { el } from "./dom.js";
import { ago, number } from "./format.js";

export function bindForms(key) {
  for (const form of document.querySelectorAll("[data-ask]")) {
    form.addEventListener("submit", async event => {
      event.preventDefault();
      const name = form.elements.name.value.trim(), result = form.querySelector(".found");
      if (name) result.replaceChildren(...await fetchView(form.dataset.ask, name, key()));
    });
  }
  document.addEventListener("click", event => {
    const item = event.target.closest("[data-item]")?.dataset.item;
    if (item) open("items", item);
  });
}

function open(kind, name) {
  const form = document.querySelector(`[data-ask="${kind}"]`);
  form.elements.name.value = name;
  form.requestSubmit();
  form.scrollIntoView({ block: "nearest", behavior: "smooth" });
}

async function fetchView(kind, name, key) {
  try {
    const answer = await fetch(`/control/api/${kind}/${encodeURIComponent(name)}`, { headers: { authorization: `Bearer ${key}` }, cache: "no-store" });
    const body = await answer.json();
    if (!answer.ok) return [el("p", { class: "none" }, body.error ?? `status ${answer.status}`)];
    return kind === "items" ? item(body) : user(body);
  } catch {
    return [el("p", { class: "none" }, "The control room doesn't answer.")];
  }
}

const title = item => item.fields?.title ?? item.item_id;
const link = (id, ...inside) => el("button", { type: "button", class: "item", data: { item: String(id) } }, ...inside);
const figure = (name, value, why = null) => el("div", { title: why }, el("dt", {}, name), el("dd", {}, value));

function item(view) {
  const speeds = Object.keys(view.counters), of = (speed, kind) => view.counters[speed][kind]; // the quickest first
  const kinds = Object.keys(view.counters[speeds[0]]).filter(kind => speeds.some(speed => of(speed, kind)));
  return [
    el("h3", {}, String(title(view)), el("span", { class: "chip" }, view.alive ? "served" : "removed")),
    el("dl", { class: "figures" }, figure("vector norm", number(view.vector.norm), `${view.vector.dim} numbers`),
      figure("vector moved at step", view.vector.moved_at ? number(view.vector.moved_at) : "not since the snapshot"),
      figure("popularity", view.popularity === null ? "–" : number(view.popularity)), figure("shown", number(view.shown), "slow counter")),
    el("table", {}, el("thead", {}, el("tr", {}, ...["counter", ...speeds].map(name => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...kinds.map(kind => el("tr", {}, el("th", { scope: "row" }, kind.replaceAll("_", " ")), ...speeds.map(speed => el("td", {}, number(of(speed, kind)))))))),
    el("p", { class: "fields" }, ...Object.entries(view.fields).map(([name, value]) => el("span", { class: "chip" }, `${name} ${Array.isArray(value) ? value.join(", ") : value}`))),
    el("h4", {}, "Nearest by vector"),
    view.near === null ? el("p", { class: "quiet" }, "The retrieval shards hold the index; this replica has none.")
      : el("ol", { class: "near" }, ...view.near.map(neighbour => el("li", {}, link(neighbour.item_id, String(title(neighbour))), el("small", {}, number(neighbour.product))))),
  ];
}

function user(view) {
  const now = Date.now();
  return [
    el("h3", {}, String(view.user_id), el("span", { class: "chip" }, view.events ? `${view.events} events` : "never seen")),
    el("p", { class: "fields" }, ...Object.entries(view.arms).map(([name, arm]) => el("span", { class: "chip" }, `${name}: ${arm}`)),
      ...view.topics.slice(0, 6).map(entry => el("span", { class: "chip" }, `${entry.tag} ${entry.weight}`))),
    el("h4", {}, "Next, and why"),
    el("ol", { class: "near why" }, ...view.answer.items.map(entry => el("li", {}, link(entry.item_id, String(title(entry))), el("small", {}, entry.sources.join(", ")), el("p", { class: "quiet" }, why(entry))))),
    el("h4", {}, "Newest first"),
    view.recent.length ? el("ol", { class: "near" }, ...view.recent.slice(0, 10).map(entry => el("li", {}, link(entry.item_id, String(entry.item_id)),
      el("small", {}, `${entry.did.join(", ") || "passed"}, ${number(entry.watch_ms / 1000)} s, ${ago(entry.time_ms, now)}`)))) : el("p", { class: "quiet" }, "Nothing in the session."),
    el("h4", {}, "Most shown"),
    view.met.length ? el("p", { class: "fields" }, ...view.met.map(entry => el("span", { class: "chip" }, `${entry.feature} ${entry.value}: ${number(entry.shown ?? 0)}`))) : el("p", { class: "quiet" }, "Nothing yet."),
  ];
}

function why(entry) {
  const reasons = (entry.reasons ?? []).slice(0, 3).map(({ feature, value, met, liked, effect }) =>
    met == null ? `${feature} ${value ?? ""} ${effect}`.replace("  ", " ") : `${feature} ${value}: shown ${met}×, liked ${Math.round(100 * liked)} %`);
  const predictions = Object.entries(entry.predictions ?? {}).slice(0, 3).map(([name, value]) => `${name.replaceAll("_", " ")} ${number(value)}`);
  return [predictions.join(", "), reasons.join("; ") || "none of its features was shown before"].filter(Boolean).join(". ");
}
