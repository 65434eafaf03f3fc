// Explanation of an item, as elements: sources, propensity, the model's predictions, and reasons.

import { readable } from "./app.js";
import { make, track } from "./dom.js";

const SOURCES = {
  covisit: "goes with yours", vector: "close to your taste", similar: "like your newest", topic: "your topics",
  popular: "popular now", fresh: "just published", trial: "new and on trial", segment: "for people like you",
  quota: "a place for new items", again: "yours before",
};

export function why(app, { item }) {
  return [sources(item.sources ?? []), chances(item), expectations(app, item), reasons(app, item.reasons)]
    .filter(Boolean);
}

function sources(names) {
  const list = make("ul", "sources");
  for (const name of names) {
    const chip = list.appendChild(make("li", "chip", SOURCES[name] ?? readable(name)));
    chip.title = `source: ${name}`;
  }
  return names.length ? list : null;
}

function chances({ propensity, score, rank }) {
  const facts = make("p", "facts");
  if (Number.isFinite(propensity)) {
    const odds = propensity > 0 ? Math.round(1 / propensity) : 0;
    const words = odds <= 1 ? "the sure pick" : `a 1-in-${odds.toLocaleString("en")} pick`;
    facts.append(make("b", "", words), ` at its rank (propensity ${percent(propensity)})`);
  }
  if (Number.isFinite(score)) facts.append(` · score ${score.toFixed(2)}`);
  if (Number.isFinite(rank)) facts.append(` · place ${rank + 1} in its list`);
  return facts.childNodes.length ? facts : null;
}

function expectations(app, { predictions, reasons: asked }) {
  const all = Object.entries(predictions ?? {}).filter(([kind, value]) => app.has(kind) && Number.isFinite(value));
  if (!all.length) {
    const missing = asked ? "No model has scored this one yet." : "What the model expects comes with the next items.";
    return make("p", "quiet", missing);
  }
  const list = make("ul", "expectations");
  list.setAttribute("aria-label", "What the model expects you to do");
  all.sort(([, a], [, b]) => b - a);
  for (const [name, value] of all.slice(0, 7)) {
    const row = list.appendChild(make("li"));
    row.style.setProperty("--share", String(Math.max(0, Math.min(1, value))));
    row.append(make("span", "label", app.nameOf(name)), track(), make("span", "value", percent(value)));
    if (app.kinds.get(name)?.label === "negative") row.className = "bad";
  }
  return list;
}

const PARTS = { profile: "what you did before", context: "where you are", popularity: "what others do" };

/** Reasons: {feature, value, effect, met, liked}; the effect is what the score loses without it. */
function reasons(app, list) {
  const shown = (list ?? []).slice(0, 6);
  if (!shown.length) return null;
  const largest = Math.max(...shown.map(({ effect = 0 }) => Math.abs(effect)), 1e-9);
  const rows = shown.map((reason) => reasonRow(app, reason, largest));
  return make("div", "reasons", make("h3", "", "Why it is here: what the score loses without it"), make("ul", "", ...rows));
}

function reasonRow(app, { feature, value, effect = 0, met, liked = 0 }, largest) {
  const row = make("li", effect < 0 ? "bad" : "");
  row.style.setProperty("--share", String(Math.abs(effect) / largest));
  row.title = met === undefined ? "" : `met ${Math.round(met) || "less than one"} times, ${app.main.name} ${percent(liked)}`;
  row.append(make("span", "label", reasonName(feature, value)), track(), make("span", "value", signed(effect)));
  return row;
}

function reasonName(feature, value) {
  return value == null ? PARTS[feature] ?? readable(feature) : `${readable(feature)}: ${value}`;
}

const signed = (effect) => `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(3)}`;

function percent(p) {
  const value = 100 * p;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toPrecision(2)} %`;
}
