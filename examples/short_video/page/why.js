// Explanation of an item, as elements: sources, propensity, the model's predictions, and reasons.

import { make, track } from "./dom.js";
import { handleOf } from "./names.js";
import { topicOfTag } from "./topics.js";

const SOURCES = {
  covisit: "watched along with yours", vector: "close to your taste", similar: "like what you watched", topic: "your topics", popular: "popular now",
  fresh: "just published", trial: "new and on trial", segment: "liked by people like you", quota: "a place for new items",
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

const PARTS = { profile: "all you watched", context: "where you are", popularity: "what others watch" };

/** Reasons: {feature, value, effect, met, liked}; the effect is what the score loses without it. */
function reasons(list) {
  const shown = (list ?? []).slice(0, 6);
  if (!shown.length) return null;
  const largest = Math.max(...shown.map(({ effect = 0 }) => Math.abs(effect)), 1e-9);
  const rows = shown.map((reason) => reasonRow(reason, largest));
  return make("div", "reasons", make("h3", "", "Why it is here: what the score loses without it"), make("ul", "", ...rows));
}

function reasonRow({ feature, value, effect = 0, met, liked = 0 }, largest) {
  const row = make("li", effect < 0 ? "bad" : "");
  row.style.setProperty("--share", String(Math.abs(effect) / largest));
  row.title = met === undefined ? "" : `met ${Math.round(met) || "less than one"} times, ${percent(liked)} watched long`;
  row.append(make("span", "label", reasonName(feature, value)), track(), make("span", "value", signed(effect)));
  return row;
}

function reasonName(feature, value) {
  if (value === undefined) return PARTS[feature] ?? feature;
  const topic = topicOfTag(value);
  return feature === "author" ? `@${handleOf(value)}` : `${topic.emoji[0]} ${topic.name}`;
}

const signed = (effect) => `${effect < 0 ? "−" : "+"}${Math.abs(effect).toFixed(3)}`;

function percent(p) {
  const value = 100 * p;
  return `${value >= 10 || value === 0 ? Math.round(value) : value.toPrecision(2)} %`;
}
