// Explanation of an item, as elements: sources, propensity, the model's predictions, and reasons.

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
    const track = make("span", "track");
    const fill = track.appendChild(make("i"));
    fill.style.setProperty("--share", String(Math.max(0, Math.min(1, value))));
    row.append(make("span", "label", LABELS[name] ?? name.replaceAll("_", " ")), track,
      make("span", "value", chance ? percent(value) : value.toFixed(2)));
    if (name === "hide" || name === "skip") row.className = "bad";
  }
  return list;
}

/** Two kinds of reasons: features of earlier items ({feature, value, met, liked}), and contributions to the score
 * ({text or feature, value}). */
function reasons(list) {
  const met = (list ?? []).filter((reason) => Number.isFinite(reason.met));
  const shares = (list ?? []).filter((reason) => !("met" in reason) && Number.isFinite(reason.value));
  if (met.length) return box("You met these before: how often you stayed", met.slice(0, 5).map(metRow));
  if (!shares.length) return null;
  const largest = Math.max(1e-9, ...shares.map((reason) => Math.abs(reason.value)));
  return box("Reasons for and against", shares.slice(0, 5).map((reason) => shareRow(reason, largest)));
}

function box(title, rows) {
  const element = make("div", "reasons");
  element.append(make("h3", "", title));
  element.appendChild(make("ul")).append(...rows);
  return element;
}

function metRow({ feature, value, met, liked = 0 }) {
  const topic = topicOfTag(value);
  const name = feature === "author" ? `@${handleOf(value)}` : `${topic.emoji[0]} ${topic.name}`;
  const row = make("li", "met");
  row.style.setProperty("--share", String(Math.max(0, Math.min(1, liked))));
  row.title = `${feature} ${value}: met ${met} times`;
  const track = make("span", "track");
  track.append(make("i"));
  row.append(make("span", "label", name), track, make("span", "value", `${percent(liked)} of ${Math.round(met) || "<1"}`));
  return row;
}

function shareRow({ text, feature, value }, largest) {
  const row = make("li", value < 0 ? "against" : "for");
  row.style.setProperty("--share", String(Math.abs(value) / largest));
  row.append(make("span", "label", String(text ?? feature ?? "").replaceAll("_", " ")), make("i"),
    make("span", "value", `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`));
  return row;
}

function percent(p) {
  const value = 100 * p;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toPrecision(2)} %`;
}

function make(tag, name = "", text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}
