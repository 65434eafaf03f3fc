// Curves over the last two hours as SVG: a line, its newest value, and its target.

import { el, metric, part, redraw, svg } from "./dom.js";
import { fixed } from "./format.js";

const WIDE = 320, HIGH = 110, MAX_POINTS = 1440, GAP_MS = 60_000;
const TARGETS = { recsys_trainer_auc: 0.5, recsys_trainer_normalized_entropy: 1, recsys_trainer_calibration: 1 };

export class Charts {
  constructor() {
    this.points = {};
    this.label = null;
    this.articles = [...document.querySelectorAll("[data-chart]")];
    for (const article of this.articles) {
      const name = article.dataset.chart;
      article.append(metric(`${name}{label=""}`, "fixed", { class: "big" }),
        svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${article.querySelector("h3").textContent} over time`, preserveAspectRatio: "none" }),
        el("div", { class: "axis" }, el("span"), el("span"), el("span")));
    }
  }

  begin(points) { this.points = points; }

  add(picture) {
    for (const [series, value] of Object.entries(picture.points)) {
      const points = this.points[series] ??= [];
      if (points.length && points.at(-1)[0] >= picture.time_ms) continue;
      points.push([picture.time_ms, value]);
      if (points.length > MAX_POINTS) points.shift();
    }
  }

  draw(picture) {
    const labels = labelsOf(picture);
    if (!labels.includes(this.label)) this.label = labels[0] ?? null;
    const box = part("labels");
    redraw(box, [labels, this.label], () => labels.map(name => {
      const button = el("button", { type: "button", "aria-pressed": String(name === this.label) }, name.replaceAll("_", " "));
      button.addEventListener("click", () => { this.label = name; this.draw(document.getElementById("room").picture); });
      return button;
    }));
    for (const article of this.articles) this.drawOne(article, picture, labels);
  }

  drawOne(article, picture, labels) {
    const name = article.dataset.chart;
    const label = name === "recsys_trainer_auc" ? labels.find(candidate => `${name}{label="${candidate}"}` in picture.samples) : this.label;
    const series = `${name}{label="${label}"}`, number = article.querySelector("[data-metric]");
    if (number.dataset.asked !== series) { number.dataset.metric = series; number.dataset.asked = series; }
    number.textContent = picture.samples[series] == null ? "–" : fixed(picture.samples[series]);
    article.querySelector("h3").dataset.of = label ? label.replaceAll("_", " ") : "";
    const points = [...(this.points[series] ?? [])];
    article.classList.toggle("empty", points.length < 2);
    redraw(article.querySelector("svg"), [points.length, points[0], points.at(-1), series], () => curve(points, TARGETS[name], article));
  }
}

function labelsOf(picture) {
  const labels = [];
  for (const series of Object.keys(picture.samples)) {
    const match = /^recsys_trainer_(?:auc|calibration|normalized_entropy)\{label="(.*)"\}$/.exec(series);
    if (match && !labels.includes(match[1])) labels.push(match[1]);
  }
  const first = labels.find(label => `recsys_trainer_auc{label="${label}"}` in picture.samples);
  return first ? [first, ...labels.filter(label => label !== first)] : labels;
}

function curve(points, target, article) {
  const axis = article.querySelector(".axis").children;
  if (points.length < 2) { for (const text of axis) text.textContent = ""; return []; }
  const values = points.map(point => point[1]), from = points[0][0], to = points.at(-1)[0];
  let low = Math.min(...values), high = Math.max(...values);
  const near = Math.abs(target - (low + high) / 2) < 3 * Math.max(high - low, 0.02);
  if (near) { low = Math.min(low, target); high = Math.max(high, target); }
  const margin = Math.max(0.08 * (high - low), 0.004);
  low -= margin; high += margin;
  const x = ms => (to === from ? WIDE : (WIDE * (ms - from)) / (to - from)), y = value => HIGH - (HIGH * (value - low)) / (high - low);
  let path = "", last = -Infinity;
  for (const [ms, value] of thinned(points)) { path += `${ms - last > GAP_MS ? "M" : "L"}${x(ms).toFixed(1)} ${y(value).toFixed(1)}`; last = ms; }
  const minutes = Math.round((to - from) / 60_000);
  axis[0].textContent = minutes >= 1 ? `${minutes} min ago` : "just now";
  axis[1].textContent = `${low.toFixed(3)} to ${high.toFixed(3)}`;
  axis[2].textContent = "now";
  const elements = [svg("path", { d: `${path}L${x(to).toFixed(1)} ${HIGH}L${x(from).toFixed(1)} ${HIGH}Z`, class: "under" }), svg("path", { d: path, class: "curve", "vector-effect": "non-scaling-stroke" })];
  if (near) elements.unshift(svg("line", { x1: 0, x2: WIDE, y1: y(target), y2: y(target), class: "goal", "vector-effect": "non-scaling-stroke" }));
  return elements;
}

function thinned(points) {
  const step = Math.ceil(points.length / 320);
  return step < 2 ? points : points.filter((_, n) => n % step === 0 || n === points.length - 1);
}
