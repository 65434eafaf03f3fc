// Time to effect on a logarithmic ruler, with one mark per stage.

import { valueOf } from "./bind.js";
import { el, metric, part, redraw } from "./dom.js";

const STEPS = [1, 2, 5];
const MARKS = [
  ["events", "acknowledged", "recsys_view_to_acknowledged_p95_ms"],
  ["session", "session", "recsys_session_fold_view_to_session_p95_ms"],
  ["example", "example", "recsys_joiner_view_to_example_p95_ms"],
  ["learned", "learned", "recsys_trainer_view_to_learned_p95_ms"],
  ["served", "served", "recsys_view_to_served_p95_ms"],
];
let marks = null;

/** Powers of ten around the times in ms; at least 100 ms to 10 s, so that the scale rarely changes. */
const decades = times => [Math.floor(Math.log10(Math.min(100, ...times))), Math.ceil(Math.log10(Math.max(10_000, ...times)))];

const place = (ms, [from, to]) => (Math.log10(ms) - from) / (to - from);

function drawTicks(box, span, width) {
  const fine = width / (span[1] - span[0]) > 240 ? STEPS : [1];
  const ticks = [];
  for (let power = span[0]; power <= span[1]; power += 1) {
    for (const step of power === span[1] ? [1] : fine) {
      const tick = el("span", { class: "tick" }, label(step * 10 ** power));
      tick.style.left = `${100 * place(step * 10 ** power, span)}%`;
      ticks.push(tick);
    }
  }
  redraw(box, [span, fine], () => ticks);
}

const label = ms => (ms >= 1000 ? `${ms / 1000} s` : `${ms} ms`);

/** Creates the marks once; their text must be written before `drawRuler`, which needs their widths. */
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
  const measured = MARKS.map(([, , series], n) => ({ n, ms: valueOf(picture, series, "ms") })).filter(({ ms }) => ms !== null);
  const span = decades(measured.map(({ ms }) => Math.min(1e6, Math.max(1, ms))));
  drawTicks(ruler.querySelector(".ticks"), span, width);
  marks.forEach((mark, n) => { mark.hidden = measured.every(mark => mark.n !== n); });
  const placed = measured.map(({ n, ms }) => ({ n, x: width * place(Math.min(1e6, Math.max(1, ms)), span) })).sort((a, b) => b.x - a.x);
  const taken = []; // from the right: a name is above every mark that it overlaps, so that no stem crosses it
  for (const { n, x } of placed) {
    const mark = marks[n], wide = mark.lastChild.offsetWidth + 6;
    const left = Math.max(0, Math.min(x - 3, width - wide + 14));
    const row = Math.max(0, ...taken.filter(name => name.left < left + wide).map(name => name.row + 1));
    taken.push({ left: Math.min(left, x), row });
    mark.style.left = `${(100 * x) / width}%`;
    mark.style.setProperty("--row", row);
    mark.style.setProperty("--shift", `${left - x}px`);
  }
}
