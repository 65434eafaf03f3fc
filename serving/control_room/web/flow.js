// The flow between stages: pipes that follow the cards, and drops whose number follows the rates.

import { valueOf } from "./bind.js";

const MOST = 36; // drops in a pipe
const still = matchMedia("(prefers-reduced-motion: reduce)");

export class Flow {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.stages = [...document.querySelectorAll(".stage")];
    this.rates = this.stages.map(() => 0);
    this.drops = this.stages.map(() => []);
    this.held = false;
    this.before = 0;
    new ResizeObserver(() => this.measure()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.measure());
    const turn = now => { this.turn(now); requestAnimationFrame(turn); };
    requestAnimationFrame(turn);
  }

  hold(held) { this.held = held; }

  tell(picture) {
    this.rates = this.stages.map(stage => valueOf(picture, stage.dataset.rate, "rate") ?? 0);
    if (!this.ways) this.measure();
    if (still.matches || this.still) this.paint();
  }

  measure() {
    const box = this.canvas.getBoundingClientRect(), scale = Math.min(2, devicePixelRatio || 1);
    if (!box.width) return;
    this.canvas.width = Math.round(box.width * scale);
    this.canvas.height = Math.round(box.height * scale);
    this.scale = scale;
    const places = this.stages.map(stage => {
      const its = stage.getBoundingClientRect();
      return { left: its.left - box.left, right: its.right - box.left, top: its.top - box.top, bottom: its.bottom - box.top,
        colour: getComputedStyle(stage).getPropertyValue("--hue").trim() };
    });
    const down = places[1].top > places[0].bottom - 4;
    this.ways = places.map((from, n) => way(from, places[(n + 1) % places.length], down, n === places.length - 1));
    this.paint();
  }

  turn(now) {
    const passed = Math.min(0.05, (now - this.before) / 1000);
    this.before = now;
    if (document.hidden || !this.ways || this.held || still.matches) return;
    this.ways.forEach((its, n) => {
      const rate = this.rates[n], drops = this.drops[n];
      const wanted = rate > 0 ? Math.min(MOST, 1 + Math.round(4 * Math.log1p(rate))) : 0;
      const speed = (60 + 26 * Math.log1p(rate)) / its.length;
      for (const drop of drops) drop.at += speed * drop.pace * passed;
      this.drops[n] = drops.filter(drop => drop.at < 1);
      if (this.drops[n].length < wanted * (its.back ? 1.6 : 1) && Math.random() < wanted * speed * passed * (its.back ? 1.6 : 1)) {
        this.drops[n].push({ at: 0, pace: 0.85 + 0.3 * Math.random(), off: 2 * Math.random() - 1 });
      }
    });
    this.paint();
  }

  paint() {
    const { context: pen, canvas } = this;
    if (!this.ways) return;
    pen.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    this.ways.forEach((its, n) => {
      const shade = pen.createLinearGradient(its.points[0].x, its.points[0].y, its.points[3].x, its.points[3].y);
      shade.addColorStop(0, its.from);
      shade.addColorStop(1, its.to);
      pen.strokeStyle = shade;
      pen.lineCap = "round";
      for (const [width, alpha] of [[its.back ? 5 : 10, 0.1], [1.5, 0.45]]) {
        pen.lineWidth = width;
        pen.globalAlpha = alpha;
        pen.stroke(its.path);
      }
      pen.fillStyle = shade;
      for (const drop of this.drops[n]) {
        const place = along(its.points, drop.at), edge = Math.min(1, 8 * drop.at, 8 * (1 - drop.at));
        pen.globalAlpha = 0.95 * edge;
        pen.beginPath();
        pen.arc(place.x + its.across.x * drop.off, place.y + its.across.y * drop.off, its.back ? 1.7 : 2.4, 0, 7);
        pen.fill();
      }
    });
    pen.globalAlpha = 1;
  }
}

/** From one card to the next: side to side, top to bottom on a phone, and the way back around. */
function way(from, to, down, back) {
  const y = place => place.top + 30, x = place => place.left + 24;
  let points;
  if (back && down) {
    const edge = Math.max(from.right, to.right) + 16;
    points = [[from.right, y(from)], [edge, y(from)], [edge, y(to)], [to.right, y(to)]];
  } else if (back) {
    const low = from.bottom + 46;
    points = [[(from.left + from.right) / 2, from.bottom], [(from.left + from.right) / 2, low], [(to.left + to.right) / 2, low], [(to.left + to.right) / 2, to.bottom]];
  } else if (down) {
    points = [[x(from), from.bottom], [x(from), from.bottom + 6], [x(to), to.top - 6], [x(to), to.top]];
  } else {
    const mid = (from.right + to.left) / 2;
    points = [[from.right, y(from)], [mid, y(from)], [mid, y(to)], [to.left, y(to)]];
  }
  points = points.map(([px, py]) => ({ x: px, y: py }));
  const path = new Path2D(), [a, b, c, d] = points;
  path.moveTo(a.x, a.y);
  path.bezierCurveTo(b.x, b.y, c.x, c.y, d.x, d.y);
  const length = Math.max(24, Math.hypot(d.x - a.x, d.y - a.y) + (back ? 60 : 0));
  return { points, path, length, back, from: from.colour, to: to.colour, across: back ? { x: 0, y: 2 } : down ? { x: 3, y: 0 } : { x: 0, y: 3 } };
}

function along([a, b, c, d], t) {
  const u = 1 - t, w = [u * u * u, 3 * u * u * t, 3 * u * t * t, t * t * t];
  return { x: w[0] * a.x + w[1] * b.x + w[2] * c.x + w[3] * d.x, y: w[0] * a.y + w[1] * b.y + w[2] * c.y + w[3] * d.y };
}
