// One item, or one user, as a replica knows it. What was asked stays in this page.

import { el } from "./dom.js";
import { ago, number } from "./format.js";

export function watchForms(key) {
  for (const form of document.querySelectorAll("[data-ask]")) {
    form.addEventListener("submit", async event => {
      event.preventDefault();
      const name = form.elements.name.value.trim(), found = form.querySelector(".found");
      if (name) found.replaceChildren(...await look(form.dataset.ask, name, key()));
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

async function look(kind, name, key) {
  try {
    const answer = await fetch(`/control/api/${kind}/${encodeURIComponent(name)}`, { headers: { authorization: `Bearer ${key}` }, cache: "no-store" });
    const said = await answer.json();
    if (!answer.ok) return [el("p", { class: "none" }, said.error ?? `status ${answer.status}`)];
    return kind === "items" ? item(said) : user(said);
  } catch {
    return [el("p", { class: "none" }, "The control room doesn't answer.")];
  }
}

const title = its => its.fields?.title ?? its.item_id;
const link = (id, ...inside) => el("button", { type: "button", class: "item", data: { item: String(id) } }, ...inside);
const figure = (name, value, why = null) => el("div", { title: why }, el("dt", {}, name), el("dd", {}, value));

function item(its) {
  const speeds = Object.entries(its.counters.fast).filter(([kind, value]) => value || its.counters.slow[kind]);
  return [
    el("h3", {}, String(title(its)), el("span", { class: "chip" }, its.alive ? "served" : "removed")),
    el("dl", { class: "figures" }, figure("vector norm", number(its.vector.norm), `${its.vector.dim} numbers`),
      figure("vector moved at step", its.vector.moved_at ? number(its.vector.moved_at) : "not since the snapshot"),
      figure("popularity", its.popularity === null ? "–" : number(its.popularity)), figure("shown", number(its.shown), "slow counter")),
    el("table", {}, el("thead", {}, el("tr", {}, ...["counter", "lately", "for long"].map(name => el("th", { scope: "col" }, name)))),
      el("tbody", {}, ...speeds.map(([kind, value]) => el("tr", {}, el("th", { scope: "row" }, kind.replaceAll("_", " ")), el("td", {}, number(value)), el("td", {}, number(its.counters.slow[kind])))))),
    el("p", { class: "fields" }, ...Object.entries(its.fields).map(([name, value]) => el("span", { class: "chip" }, `${name} ${Array.isArray(value) ? value.join(", ") : value}`))),
    el("h4", {}, "Nearest by vector"),
    its.near === null ? el("p", { class: "quiet" }, "Shards of retrieval have the index; this replica has none.")
      : el("ol", { class: "near" }, ...its.near.map(one => el("li", {}, link(one.item_id, String(title(one))), el("small", {}, number(one.product))))),
  ];
}

function user(its) {
  const now = Date.now();
  return [
    el("h3", {}, String(its.user_id), el("span", { class: "chip" }, its.events ? `${its.events} events` : "never seen")),
    el("p", { class: "fields" }, ...Object.entries(its.arms).map(([name, arm]) => el("span", { class: "chip" }, `${name}: ${arm}`)),
      ...its.topics.slice(0, 6).map(one => el("span", { class: "chip" }, `${one.tag} ${one.weight}`))),
    el("h4", {}, "Next, and why"),
    el("ol", { class: "near why" }, ...its.answer.items.map(one => el("li", {}, link(one.item_id, String(title(one))), el("small", {}, one.sources.join(", ")), el("p", { class: "quiet" }, why(one))))),
    el("h4", {}, "Newest first"),
    its.recent.length ? el("ol", { class: "near" }, ...its.recent.slice(0, 10).map(one => el("li", {}, link(one.item_id, String(one.item_id)),
      el("small", {}, `${one.did.join(", ") || "passed"}, ${number(one.watch_ms / 1000)} s, ${ago(one.time_ms, now)}`)))) : el("p", { class: "quiet" }, "Nothing in the session."),
    el("h4", {}, "Met most"),
    its.met.length ? el("p", { class: "fields" }, ...its.met.map(one => el("span", { class: "chip" }, `${one.feature} ${one.value}: ${number(one.shown ?? 0)}`))) : el("p", { class: "quiet" }, "Nobody and nothing yet."),
  ];
}

function why(one) {
  const said = (one.reasons ?? []).slice(0, 3).map(its => `${its.feature} ${its.value}: met ${its.met}×, liked ${Math.round(100 * its.liked)} %`);
  const chances = Object.entries(one.predictions ?? {}).slice(0, 3).map(([name, value]) => `${name.replaceAll("_", " ")} ${number(value)}`);
  return [chances.join(", "), said.join("; ") || "nothing of it was met before"].filter(Boolean).join(". ");
}
