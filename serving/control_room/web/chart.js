// Curves over the last hour as SVG: one line or several, their newest values, and a target where there is one.

import { el, metric, part, put, redraw, svg } from "./dom.js";
import { AS, fixed } from "./format.js";

const WIDE = 320, HIGH = 110, MAX_POINTS = 720, GAP_MS = 60_000, MAX_LINES = 4;
const TARGETS = { recsys_trainer_auc: 0.5, recsys_trainer_normalized_entropy: 1, recsys_trainer_calibration: 1 };

export class Charts {
  constructor() {
    this.points = {};
    this.label = null;
    this.articles = [...document.querySelectorAll(".chart[data-chart], .chart[data-curves]")];
    for (const article of this.articles) {
      const name = article.dataset.chart;
      article.append(name ? metric(`${name}{label=""}`, "fixed", { class: "big" }) : el("p", { class: "legend" }),
        svg("svg", { viewBox: `0 0 ${WIDE} ${HIGH}`, role: "img", "aria-label": `${article.querySelector("h3").textContent} over time`, preserveAspectRatio: "none" }),
        el("div", { class: "axis" }, el("span"), el("span"), el("span")), el("p", { class: "quiet" }));
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
    for (const article of this.articles) {
      if (article.dataset.chart) this.drawOne(article, picture, labels);
      else this.drawSeveral(article, picture);
    }
  }

  /** A metric of one label, beside its target. */
  drawOne(article, picture, labels) {
    const name = article.dataset.chart;
    const label = name === "recsys_trainer_auc" ? labels.find(candidate => `${name}{label="${candidate}"}` in picture.samples) : this.label;
    const series = `${name}{label="${label}"}`, number = article.querySelector("[data-metric]");
    if (number.dataset.asked !== series) { number.dataset.metric = series; number.dataset.asked = series; }
    number.textContent = picture.samples[series] == null ? "–" : fixed(picture.samples[series]);
    article.querySelector("h3").dataset.of = label ? label.replaceAll("_", " ") : "";
    this.drawLines(article, [series], target(TARGETS[name]));
  }

  /** The series that an article names, or, after a name that ends in `{`, those of the name with the greatest values. */
  drawSeveral(article, picture) {
    const { curves, names = "", as } = article.dataset;
    const lines = curves.split(" ").flatMap((series, n) => (series.endsWith("{") ? this.greatest(series) : [[series, names.split(" ")[n]]]));
    redraw(article.querySelector(".legend"), lines, () => lines.map(([series, name]) => el("span", {}, el("i", { "aria-hidden": "true" }), `${name} `, metric(series, as))));
    this.drawLines(article, lines.map(([series]) => series), fromZero(AS[as]));
  }

  greatest(prefix) {
    return Object.entries(this.points).filter(([series, points]) => series.startsWith(prefix) && points.length)
      .map(([series, points]) => [series, Math.max(...points.map(point => point[1]))])
      .sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, MAX_LINES)
      .map(([series]) => [series, [...series.matchAll(/="([^"]*)"/g)].map(([, value]) => value.replaceAll("_", " ")).join(", ")]);
  }

  drawLines(article, lines, scale) {
    const all = lines.map(series => this.points[series] ?? []).filter(points => points.length > 1);
    article.classList.toggle("empty", !all.length);
    put(article.querySelector(".quiet"), all.length ? "" : article.dataset.empty);
    redraw(article.querySelector("svg"), [lines, all.map(points => [points.length, points[0], points.at(-1)])], () => drawing(all, scale, article));
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

/** The range of values around them, with the target where it is near: {low, high, goal, text}. */
const target = goal => (low, high) => {
  const near = Math.abs(goal - (low + high) / 2) < 3 * Math.max(high - low, 0.02);
  if (near) { low = Math.min(low, goal); high = Math.max(high, goal); }
  const margin = Math.max(0.08 * (high - low), 0.004);
  return { low: low - margin, high: high + margin, goal: near ? goal : null, text: `${fixed(low - margin)} to ${fixed(high + margin)}` };
};

const fromZero = format => (_, high) => ({ low: 0, high: high * 1.08 || 1, goal: null, text: `up to ${format(high)}` });

function drawing(lines, scale, article) {
  const axis = article.querySelector(".axis").children;
  if (!lines.length) { for (const text of axis) text.textContent = ""; return []; }
  const values = lines.flatMap(points => points.map(point => point[1]));
  const { low, high, goal, text } = scale(Math.min(...values), Math.max(...values));
  const from = Math.min(...lines.map(points => points[0][0])), to = Math.max(...lines.map(points => points.at(-1)[0]));
  const x = ms => (to === from ? WIDE : (WIDE * (ms - from)) / (to - from)), y = value => HIGH - (HIGH * (value - low)) / (high - low);
  const minutes = Math.round((to - from) / 60_000);
  axis[0].textContent = minutes >= 1 ? `${minutes} min ago` : "just now";
  axis[1].textContent = text;
  axis[2].textContent = "now";
  const elements = goal === null ? [] : [svg("line", { x1: 0, x2: WIDE, y1: y(goal), y2: y(goal), class: "goal", "vector-effect": "non-scaling-stroke" })];
  for (const points of lines) {
    let path = "", last = -Infinity;
    for (const [ms, value] of thinned(points)) { path += `${ms - last > GAP_MS ? "M" : "L"}${x(ms).toFixed(1)} ${y(value).toFixed(1)}`; last = ms; }
    if (lines.length === 1) elements.push(svg("path", { d: `${path}L${x(points.at(-1)[0]).toFixed(1)} ${HIGH}L${x(points[0][0]).toFixed(1)} ${HIGH}Z`, class: "under" }));
    elements.push(svg("path", { d: path, class: "curve", "vector-effect": "non-scaling-stroke" }));
  }
  return elements;
}

function thinned(points) {
  const step = Math.ceil(points.length / 320);
  return step < 2 ? points : points.filter((_, n) => n % step === 0 || n === points.length - 1);
}
