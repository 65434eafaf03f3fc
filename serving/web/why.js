// Explanation of an item, as elements: sources, propensity, the model's predictions, and reasons.

import { make, track } from "./dom.js";
import { handleOf } from "./names.js";
import { topicOfTag } from "./topics.js";

const SOURCES = {
  vector: "close to your taste", similar: "like what you watched", topic: "your topics", popular: "popular now",
  fresh: "just published", explore: "exploring", follow: "you follow them", author: "an author you watch",
};
const LABELS = {
  long_view: "watch long", view: "watch", click: "look closer", like: "like", follow: "follow",
  comment: "comment", share: "share", hide: "hide", skip: "skip", watch: "minutes watched",
};

export function why(entry) {
  const { item } = entry;
  return [sources(item.sources ?? []), chances(item), expectations(item), reasons(item.reasons)]
    .filter(Boolean);
}

function sources(names) {
  const list = make("ul", "sources");
  for (const name of names) {
    const chip = list.appendChild(make("li", "chip", SOURCES[name] ?? name.replaceAll("_", " ")));
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

function expectations({ predictions, reasons: asked }) {
  const all = Object.entries(predictions ?? {}).filter(([, value]) => Number.isFinite(value));
  if (!all.length) {
    const missing = asked ? "No model has scored this one yet." : "What the model expects comes with the next items.";
    return make("p", "quiet", missing);
  }
  const list = make("ul", "expectations");
  list.setAttribute("aria-label", "What the model expects you to do");
  all.sort(([, a], [, b]) => b - a);
  for (const [name, value] of all.slice(0, 7)) {
    const row = list.appendChild(make("li"));
    const chance = name !== "watch" && value <= 1;
    row.style.setProperty("--share", String(Math.max(0, Math.min(1, value))));
    row.append(make("span", "label", LABELS[name] ?? name.replaceAll("_", " ")), track(),
      make("span", "value", chance ? percent(value) : value.toFixed(2)));
    if (name === "hide" || name === "skip") row.className = "bad";
  }
  return list;
}

/** Features of the item that earlier items had: {feature, value, met, liked}. */
function reasons(list) {
  const rows = (list ?? []).slice(0, 5).map(reasonRow);
  if (!rows.length) return null;
  return make("div", "reasons", make("h3", "", "You met these before: how often you stayed"), make("ul", "", ...rows));
}

function reasonRow({ feature, value, met, liked = 0 }) {
  const topic = topicOfTag(value);
  const name = feature === "author" ? `@${handleOf(value)}` : `${topic.emoji[0]} ${topic.name}`;
  const row = make("li");
  row.style.setProperty("--share", String(Math.max(0, Math.min(1, liked))));
  row.title = `${feature} ${value}: met ${met} times`;
  row.append(make("span", "label", name), track(), make("span", "value", `${percent(liked)} of ${Math.round(met) || "<1"}`));
  return row;
}

function percent(p) {
  const value = 100 * p;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toPrecision(2)} %`;
}
