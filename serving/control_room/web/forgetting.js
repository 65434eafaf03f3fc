// Forgetting: AUC of example panels by age, and in large the loss of the oldest panel.

import { labelled, valueOf } from "./bind.js";
import { el, metric, part, redraw } from "./dom.js";

const PREFIX = "recsys_shadow_panel_";
const AGES = ["previous", "10min", "1h", "6h", "1d"];
const AUCS = ["before", "learned", "now"];

export function drawForgetting(picture) {
  const available = labelled(picture, `${PREFIX}auc_now`, "age");
  const ages = AGES.filter(age => available.includes(age));
  // One panel may be nearest to two ages; it is shown once.
  const rows = ages.filter((age, n) => ages.slice(0, n).every(before => ageOf(picture, before) !== ageOf(picture, age)));
  redraw(part("forgetting"), rows, () => (rows.length ? panels(rows) : [
    el("p", { class: "big" }, "–"),
    el("p", { class: "quiet" }, "Each snapshot keeps a panel of the examples that it has just learned; later snapshots score it again. Panels so far: ",
      metric("recsys_shadow_panels", "int"))]));
}

const ageOf = (picture, age) => valueOf(picture, series("age_s", age), "s");
const series = (what, age) => `${PREFIX}${what}{age="${age}"}`;

function panels(rows) {
  const oldest = rows.at(-1);
  const head = ["age", "served", "learned", "now", "lost"].map(name => el("th", { scope: "col" }, name));
  return [
    el("p", { class: "big" }, metric(series("forgotten", oldest), "fixed")),
    el("p", {}, "of what was learned ", metric(series("age_s", oldest), "s"), " ago, by ", metric(series("examples", oldest), "int"), " examples"),
    el("table", { class: "kept" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows.map(age => el("tr", {},
      el("th", { scope: "row" }, metric(series("age_s", age), "s")),
      ...AUCS.map(what => el("td", {}, metric(series(`auc_${what}`, age), "fixed"))),
      el("td", {}, metric(series("forgotten", age), "fixed")))))),
  ];
}
