// Experiments: arms, and effects with intervals on one scale.

import { el, part, redraw, svg } from "./dom.js";
import { percent, s } from "./format.js";

const WIDE = 240, HIGH = 26;
const OLD_S = 60, STEP_S = 30; // age from which it is shown (two updates), and experiment resolution

export function drawExperiments(picture) {
  const { experiments, experiments_left_out: more } = picture.panels;
  const ages = experiments.map(experiment => (experiment.read_ms && experiment.state !== "stopped" ? STEP_S * Math.floor((picture.time_ms - experiment.read_ms) / 1000 / STEP_S) : 0));
  redraw(part("experiments"), [experiments, ages, more], () => [
    ...(experiments.length ? experiments.map((experiment, at) => article(experiment, ages[at])) : [el("p", { class: "none" }, "No experiment has been read yet.")]),
    ...(more ? [el("p", { class: "quiet" }, `${more} more: recsys experiment list`)] : []),
  ]);
}

function article(experiment, age) {
  if (experiment.unread) return el("article", { class: "experiment" }, el("h3", {}, experiment.name), el("p", { class: "quiet" }, experiment.unread));
  const { report } = experiment;
  const users = report.arms.reduce((sum, arm) => sum + arm.users, 0);
  return el("article", { class: "experiment", data: { verdict: report.verdict } },
    el("h3", {}, experiment.name, el("span", { class: "chip" }, experiment.state === "running" ? report.verdict : experiment.state)),
    el("p", { class: "quiet" }, experiment.hypothesis),
    el("p", { class: "arms" }, ...report.arms.map(arm => el("span", {}, `${arm.name} `, el("b", { title: "users, from stamps of impressions" }, arm.users.toLocaleString("en"))))),
    el("div", { class: "effects" }, ...report.lines.map(line => effect(line, report))),
    experiment.failed ? el("p", { class: "quiet" }, experiment.failed) : null,
    age >= OLD_S ? el("p", { class: "quiet" }, `Read ${s(age)} ago.`) : null,
    experiment.behind ? el("p", { class: "quiet" }, "Still reading the log.") : null,
    !users ? el("p", { class: "quiet" }, "No users exposed yet.") : null,
    ...report.notes.map(note => el("p", { class: "quiet" }, note)));
}

function effect(line, report) {
  const bounded = line.high !== null && line.low !== null && line.relative !== null;
  const reach = Math.max(0.05, ...report.lines.filter(other => other.high !== null).flatMap(other => [Math.abs(other.low), Math.abs(other.high)]));
  const x = value => WIDE / 2 + (WIDE / 2 - 6) * Math.max(-1, Math.min(1, value / reach));
  const drawing = svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, class: "interval", role: "img", "aria-label": bounded ? `${percent(line.low)} to ${percent(line.high)}` : "unknown" },
    svg("line", { x1: WIDE / 2, x2: WIDE / 2, y1: 0, y2: HIGH, class: "zero" }));
  if (bounded) drawing.append(svg("line", { x1: x(line.low), x2: x(line.high), y1: HIGH / 2, y2: HIGH / 2, class: "span" }), svg("circle", { cx: x(line.relative), cy: HIGH / 2, r: 5, class: "at" }));
  return el("div", { class: "effect-line", data: { finding: line.finding } },
    el("span", { class: "what" }, line.metric.replaceAll("_", " "), el("small", {}, `${line.arm}, ${line.role}`)), drawing,
    el("span", { class: "how" }, bounded ? `${percent(line.relative)}` : "open", el("small", {}, bounded ? `${percent(line.low)} to ${percent(line.high)}` : "too few users")));
}
