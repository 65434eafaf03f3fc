// How long until a view counts, on a logarithmic ruler: one mark for each stage.

import { valueOf } from "./bind.js";
import { el, metric, part, svg } from "./dom.js";

const FROM_MS = 3, TO_MS = 30_000;
const TICKS = [[10, "10 ms"], [100, "100 ms"], [1000, "1 s"], [10_000, "10 s"]];
const MARKS = [
  ["session", "session", "recsys_session_fold_click_to_session_p95_ms", "ms", 1],
  ["example", "example", "recsys_joiner_joined_after_s", "s", 1000],
  ["learned", "learned", "recsys_trainer_learned_after_s", "s", 1000],
  ["served", "served", "recsys_click_to_served_p95_ms", "ms", 1],
];
const at = ms => Math.min(1, Math.max(0, Math.log(ms / FROM_MS) / Math.log(TO_MS / FROM_MS)));
let marks = null;

function begin(ruler) {
  ruler.append(el("i", { class: "line" }));
  for (const [ms, name] of TICKS) {
    const tick = el("span", { class: "tick" }, name);
    tick.style.left = `${100 * at(ms)}%`;
    ruler.append(tick);
  }
  marks = MARKS.map(([stage, name, series, as]) => {
    const mark = el("div", { class: "mark-at", data: { stage } }, el("i"), el("span", {}, `${name} `, metric(series, as)));
    ruler.append(mark);
    return mark;
  });
  ruler.prepend(svg("svg", { "aria-hidden": "true" }));
}

export function drawRuler(picture) {
  const ruler = part("ruler");
  if (!marks) begin(ruler);
  const width = ruler.clientWidth;
  const found = MARKS.map(([, , series, as, by], n) => {
    const value = valueOf(picture, series, as);
    marks[n].hidden = value === null;
    return { n, x: value === null ? null : at(Math.max(FROM_MS, by * value)) };
  }).filter(its => its.x !== null).sort((a, b) => a.x - b.x);
  const ends = [-1e9, -1e9, -1e9, -1e9]; // where each row of names is free again
  for (const { n, x } of found) {
    const mark = marks[n], room = mark.lastChild.offsetWidth + 14;
    const left = Math.min(Math.max(0, x * width - room / 2), width - room);
    const row = Math.max(0, ends.findIndex(end => end <= left));
    ends[row] = left + room;
    mark.style.left = `${100 * x}%`;
    mark.style.setProperty("--row", row);
    mark.style.setProperty("--shift", `${left - x * width}px`);
  }
}
