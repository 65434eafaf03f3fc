// Animated backgrounds: each function takes random draws and returns the content of an SVG of 100 × 178. Colours are
// classes (c1 … c4, from the cover's palette), motion is CSS (m-…), so that a paused card costs nothing. The markup
// contains numbers only, never a field of an item.

const W = 100;
const H = 178;
const round = (x) => Math.round(x * 10) / 10;
const many = (n, draw) => Array.from({ length: n }, (_, i) => draw(i)).join("");
const timing = (seconds, delay = 0) => `style="--t:${round(seconds)}s;--wait:${round(delay)}s"`;

function rays(draws) {
  const n = draws.int(9, 16);
  const [x, y] = [draws.between(30, 70), draws.between(60, 120)];
  const step = Math.PI / n;
  const wedge = (i) => {
    const [a, b] = [2 * i * step, (2 * i + 1) * step];
    const at = (angle) => `${round(x + 260 * Math.cos(angle))} ${round(y + 260 * Math.sin(angle))}`;
    return `<path class="c2" d="M${round(x)} ${round(y)}L${at(a)}L${at(b)}z"/>`;
  };
  return `<g class="m-spin" ${timing(draws.between(40, 70))} transform-origin="${round(x)} ${round(y)}">${many(n, wedge)}</g>`;
}

function rings(draws) {
  const [x, y] = [round(draws.between(20, 80)), round(draws.between(50, 130))];
  const circles = many(9, (i) => {
    const r = 150 - i * 16;
    return `<circle class="c${1 + (i % 3)} m-breathe" ${timing(7, -i * 0.5)} transform-origin="${x} ${y}" cx="${x}" cy="${y}" r="${r}"/>`;
  });
  const moons = many(5, (i) => {
    const r = 30 + i * 17;
    return `<g class="m-spin" ${timing(9 + i * 5, -i * 7)} transform-origin="${x} ${y}"><circle class="c4" cx="${x + r}" cy="${y}" r="${round(draws.between(1.5, 4))}"/></g>`;
  });
  return circles + moons;
}

function wave(y, height, length) {
  let d = `M0 ${round(y)}`;
  for (let x = 0; x < 4 * W; x += length) {
    d += `q${length / 4} ${-height} ${length / 2} 0t${length / 2} 0`;
  }
  return `${d}V${H + 20}H0z`;
}

function dunes(draws) {
  const sun = `<circle class="c4 m-bob" ${timing(9)} cx="${draws.int(20, 80)}" cy="${draws.int(34, 60)}" r="${draws.int(12, 20)}"/>`;
  const layers = many(6, (i) => {
    const length = draws.pick([50, 100]);
    return `<path class="c${[2, 3, 2, 1, 2, 1][i]} m-slide" ${timing(38 - i * 5, -i * 9)} opacity="${round(0.55 + i * 0.09)}" d="${wave(82 + i * 17, draws.int(8, 18), length)}"/>`;
  });
  return sun + layers;
}

function confetti(draws) {
  return many(46, (i) => {
    const [x, size] = [round(draws.between(0, W)), round(draws.between(2, 7))];
    const seconds = draws.between(7, 15);
    const shape = draws.pick([
      `<rect width="${size}" height="${round(size * 0.45)}" rx="0.6"/>`,
      `<circle r="${round(size / 2)}"/>`,
      `<path d="M0 0l${size} 0l${round(-size / 2)} ${size}z"/>`,
    ]);
    return `<g class="c${2 + (i % 3)} m-fall" ${timing(seconds, -draws.between(0, 15))}><g transform="translate(${x} 0) rotate(${draws.int(0, 180)})">${shape}</g></g>`;
  });
}

function tiles(draws) {
  const side = draws.pick([20, 25]);
  const columns = W / side;
  return many(columns * Math.ceil(H / side), (i) => {
    const [x, y] = [(i % columns) * side, Math.floor(i / columns) * side];
    const kind = draws.int(0, 4);
    const middle = `transform-origin="${x + side / 2} ${y + side / 2}"`;
    const turn = `transform="rotate(${draws.int(0, 3) * 90} ${x + side / 2} ${y + side / 2})"`;
    const moving = draws.chance(0.4) ? `class="m-quarter" ${timing(draws.between(5, 11), -draws.between(0, 9))} ${middle}` : "";
    const back = `<rect class="c${draws.int(1, 2)}" x="${x}" y="${y}" width="${side + 0.2}" height="${side + 0.2}"/>`;
    const shapes = [
      `<path d="M${x} ${y}h${side}a${side} ${side} 0 0 1 ${-side} ${side}z"/>`,
      `<circle cx="${x + side / 2}" cy="${y + side / 2}" r="${side / 2.6}"/>`,
      `<path d="M${x} ${y + side}a${side / 2} ${side / 2} 0 0 1 ${side} 0z"/>`,
      `<path d="M${x} ${y}l${side} ${side}h${-side}z"/>`,
      "",
    ];
    return `${back}<g class="c${draws.int(2, 4)}"><g ${moving}><g ${turn}>${shapes[kind]}</g></g></g>`;
  });
}

function aurora(draws) {
  const blobs = many(7, (i) => {
    const [x, y] = [draws.int(-5, 105), draws.int(0, 178)];
    return `<circle class="c${1 + (i % 4)} m-wander" ${timing(draws.between(11, 22), -draws.between(0, 20))} cx="${x}" cy="${y}" r="${draws.int(22, 44)}"/>`;
  });
  return `<g class="soft">${blobs}</g>`;
}

function stripes(draws) {
  const width = draws.pick([10, 14, 20]);
  const bars = many(40, (i) => `<rect class="c${i % 2 ? 2 : draws.chance(0.2) ? 4 : 1}" x="${i * width - 260}" y="-140" width="${width + 0.2}" height="460"/>`);
  return `<g transform="rotate(${draws.pick([-38, -24, 24, 38])} 50 89)"><g class="m-march" style="--t:${draws.int(5, 9)}s;--wait:0s;--by:${width * 2}px">${bars}</g></g>`;
}

function equaliser(draws) {
  const n = draws.int(8, 14);
  const width = W / n;
  return many(n, (i) => {
    const height = round(draws.between(30, 150));
    return `<rect class="c${2 + (i % 3)} m-jump" ${timing(draws.between(1.1, 2.6), -draws.between(0, 3))} transform-origin="0 ${H}" x="${round(i * width + width * 0.12)}" y="${H - height}" width="${round(width * 0.76)}" height="${height + 4}" rx="${round(width / 4)}"/>`;
  });
}

function tunnel(draws) {
  const stars = many(70, (i) => {
    const angle = draws.between(0, 2 * Math.PI);
    const r = draws.between(8, 40);
    return `<g class="m-near" ${timing(draws.between(3, 7), -draws.between(0, 7))} transform-origin="50 84"><circle class="c${2 + (i % 3)}" cx="${round(50 + r * Math.cos(angle))}" cy="${round(84 + r * Math.sin(angle))}" r="${round(draws.between(0.4, 1.3))}"/></g>`;
  });
  return `<circle class="c2 m-breathe" ${timing(6)} transform-origin="50 84" cx="50" cy="84" r="46" opacity="0.5"/>${stars}`;
}

function halftone(draws) {
  const side = draws.pick([8, 10]);
  const [fx, fy] = [draws.between(0, W), draws.between(0, H)];
  const columns = Math.ceil(W / side) + 1;
  return many(columns * (Math.ceil(H / side) + 1), (i) => {
    const [x, y] = [(i % columns) * side, Math.floor(i / columns) * side];
    const near = 1 - Math.min(1, Math.hypot(x - fx, y - fy) / 130);
    const r = round(side * (0.08 + 0.5 * near));
    return `<circle class="c${near > 0.62 ? 3 : 2} m-breathe" ${timing(4.5, -near * 4.5)} transform-origin="${x} ${y}" cx="${x}" cy="${y}" r="${r}"/>`;
  });
}

function horizon(draws) {
  const line = 108;
  const sun = `<circle class="c3" cx="50" cy="${line - 22}" r="34"/>` +
    many(6, (i) => `<rect class="c1" x="10" y="${line - 20 + i * 6}" width="80" height="${round(0.8 + i * 0.65)}"/>`);
  const floor = `<rect class="c1" x="0" y="${line}" width="100" height="80"/>`;
  const rows = many(7, (i) => `<rect class="c2 m-approach" ${timing(4.2, -i * 0.6)} x="0" y="${line}" width="100" height="0.7"/>`);
  const columns = many(13, (i) => `<path class="l2" stroke-width="0.6" d="M${50 + (i - 6) * 5} ${line}L${50 + (i - 6) * 34} ${H}"/>`);
  const stars = many(24, () => `<circle class="c4 m-blink" ${timing(draws.between(2, 5), -draws.between(0, 5))} cx="${draws.int(0, 100)}" cy="${draws.int(0, 60)}" r="0.5"/>`);
  return stars + sun + floor + rows + columns;
}

function ribbons(draws) {
  const bend = draws.int(26, 54);
  return many(9, (i) => {
    const y = -10 + i * 24;
    return `<path class="l${1 + (i % 4)} m-sway" ${timing(draws.between(6, 12), -i)} stroke-width="${draws.int(7, 15)}" d="M-20 ${y}c40 ${-bend} 60 ${bend} 90 0s50 ${-bend} 90 0"/>`;
  });
}

const FAMILIES = [
  rays, rings, dunes, confetti, tiles, aurora, stripes, equaliser, tunnel, halftone, horizon, ribbons,
];

/** The markup of one background, and the name of its family. */
export function pattern(draws) {
  const family = draws.pick(FAMILIES);
  const svg = `<svg class="pattern" viewBox="0 0 ${W} ${H}" preserveAspectRatio="xMidYMid slice" aria-hidden="true">${family(draws)}</svg>`;
  return { name: family.name, svg };
}
