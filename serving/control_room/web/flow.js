// Animation of the flow between stages: pipes between the cards, and drops in proportion to the rates.

import { valueOf } from "./bind.js";

const MAX_DROPS = 36; // per pipe
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

export class Flow {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.stages = [...document.querySelectorAll(".stage")];
    this.rates = this.stages.map(() => 0);
    this.drops = this.stages.map(() => []);
    this.paused = false;
    this.before = 0;
    new ResizeObserver(() => this.measure()).observe(canvas.parentElement);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.measure());
    const frame = now => { this.step(now); requestAnimationFrame(frame); };
    requestAnimationFrame(frame);
  }

  pause(paused) { this.paused = paused; }

  update(picture) {
    this.rates = this.stages.map(stage => valueOf(picture, stage.dataset.rate, "rate") ?? 0);
    if (!this.pipes) this.measure();
    if (reducedMotion.matches) this.paint();
  }

  measure() {
    const box = this.canvas.getBoundingClientRect(), scale = Math.min(2, devicePixelRatio || 1);
    if (!box.width) return;
    this.canvas.width = Math.round(box.width * scale);
    this.canvas.height = Math.round(box.height * scale);
    this.scale = scale;
    const places = this.stages.map(stage => {
      const card = stage.getBoundingClientRect();
      return { left: card.left - box.left, right: card.right - box.left, top: card.top - box.top, bottom: card.bottom - box.top,
        colour: getComputedStyle(stage).getPropertyValue("--hue").trim() };
    });
    const down = places[1].top > places[0].bottom - 4;
    this.pipes = places.map((from, n) => pipeBetween(from, places[(n + 1) % places.length], down, n === places.length - 1));
    this.paint();
  }

  step(now) {
    const elapsed_s = Math.min(0.05, (now - this.before) / 1000);
    this.before = now;
    if (document.hidden || !this.pipes || this.paused || reducedMotion.matches) return;
    this.pipes.forEach((pipe, n) => {
      const rate = this.rates[n], drops = this.drops[n];
      const wanted = rate > 0 ? Math.min(MAX_DROPS, 1 + Math.round(4 * Math.log1p(rate))) : 0;
      const speed = (60 + 26 * Math.log1p(rate)) / pipe.length;
      for (const drop of drops) drop.at += speed * drop.pace * elapsed_s;
      this.drops[n] = drops.filter(drop => drop.at < 1);
      if (this.drops[n].length < wanted * (pipe.back ? 1.6 : 1) && Math.random() < wanted * speed * elapsed_s * (pipe.back ? 1.6 : 1)) {
        this.drops[n].push({ at: 0, pace: 0.85 + 0.3 * Math.random(), off: 2 * Math.random() - 1 });
      }
    });
    this.paint();
  }

  paint() {
    const { context: pen, canvas } = this;
    if (!this.pipes) return;
    pen.setTransform(this.scale, 0, 0, this.scale, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    this.pipes.forEach((pipe, n) => {
      const shade = pen.createLinearGradient(pipe.points[0].x, pipe.points[0].y, pipe.points[3].x, pipe.points[3].y);
      shade.addColorStop(0, pipe.from);
      shade.addColorStop(1, pipe.to);
      pen.strokeStyle = shade;
      pen.lineCap = "round";
      for (const [width, alpha] of [[pipe.back ? 5 : 10, 0.1], [1.5, 0.45]]) {
        pen.lineWidth = width;
        pen.globalAlpha = alpha;
        pen.stroke(pipe.path);
      }
      pen.fillStyle = shade;
      for (const drop of this.drops[n]) {
        const place = along(pipe.points, drop.at), edge = Math.min(1, 8 * drop.at, 8 * (1 - drop.at));
        pen.globalAlpha = 0.95 * edge;
        pen.beginPath();
        pen.arc(place.x + pipe.across.x * drop.off, place.y + pipe.across.y * drop.off, pipe.back ? 1.7 : 2.4, 0, 7);
        pen.fill();
      }
    });
    pen.globalAlpha = 1;
  }
}

/** A pipe from one card to the next: horizontal, vertical on a phone, and around the cards for the way back. */
function pipeBetween(from, to, down, back) {
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
