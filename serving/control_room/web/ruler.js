// How long until a view counts, on a logarithmic ruler: one mark for each stage. It shows the decades that they are in.

import { valueOf } from "./bind.js";
import { el, metric, part, redraw } from "./dom.js";

const STEPS = [1, 2, 5];
const MARKS = [
  ["swipes", "acknowledged", "recsys_view_to_acknowledged_p95_ms"],
  ["session", "session", "recsys_session_fold_click_to_session_p95_ms"],
  ["example", "example", "recsys_joiner_view_to_example_p95_ms"],
  ["learned", "learned", "recsys_trainer_view_to_learned_p95_ms"],
  ["served", "served", "recsys_view_to_served_p95_ms"],
];
let marks = null;

/** The decades around some times in ms, as powers of ten: at least 100 ms to 10 s, so that it seldom moves. */
const decades = found => [Math.floor(Math.log10(Math.min(100, ...found))), Math.ceil(Math.log10(Math.max(10_000, ...found)))];

const place = (ms, [from, to]) => (Math.log10(ms) - from) / (to - from);

function drawTicks(box, span, width) {
  const fine = width / (span[1] - span[0]) > 240 ? STEPS : [1];
  const made = [];
  for (let power = span[0]; power <= span[1]; power += 1) {
    for (const step of power === span[1] ? [1] : fine) {
      const tick = el("span", { class: "tick" }, said(step * 10 ** power));
      tick.style.left = `${100 * place(step * 10 ** power, span)}%`;
      made.push(tick);
    }
  }
  redraw(box, [span, fine], () => made);
}

const said = ms => (ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`);

/** Its elements, once; what they say is written before `drawRuler` places them by how wide they are. */
export function beginRuler() {
  if (marks) return;
  const ruler = part("ruler");
  ruler.append(el("i", { class: "line" }), el("div", { class: "ticks" }));
  marks = MARKS.map(([stage, name, series]) => {
    const mark = el("div", { class: "mark-at", data: { stage } }, el("i"), el("span", {}, `${name} `, metric(series, "ms")));
    ruler.append(mark);
    return mark;
  });
}

export function drawRuler(picture) {
  const ruler = part("ruler");
  const width = ruler.clientWidth;
  const known = MARKS.map(([, , series], n) => ({ n, ms: valueOf(picture, series, "ms") })).filter(({ ms }) => ms !== null);
  const span = decades(known.map(({ ms }) => Math.min(1e6, Math.max(1, ms))));
  drawTicks(ruler.querySelector(".ticks"), span, width);
  marks.forEach((mark, n) => { mark.hidden = known.every(its => its.n !== n); });
  const found = known.map(({ n, ms }) => ({ n, x: width * place(Math.min(1e6, Math.max(1, ms)), span) })).sort((a, b) => b.x - a.x);
  const taken = []; // from the right: a name stands above every mark that it reaches over, so no stem crosses it
  for (const { n, x } of found) {
    const mark = marks[n], wide = mark.lastChild.offsetWidth + 6;
    const left = Math.max(0, Math.min(x - 3, width - wide + 14));
    const row = Math.max(0, ...taken.filter(its => its.left < left + wide).map(its => its.row + 1));
    taken.push({ left: Math.min(left, x), row });
    mark.style.left = `${(100 * x) / width}%`;
    mark.style.setProperty("--row", row);
    mark.style.setProperty("--shift", `${left - x}px`);
  }
}
