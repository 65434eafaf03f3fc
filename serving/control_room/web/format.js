// Number formats: a number, then a unit if any. Tests parse them.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const SIZES = ["B", "kB", "MB", "GB", "TB"];

/** Three significant digits: 0.0042, 1.23, 45.6, 789, 12,345. */
export function number(value) {
  const size = Math.abs(value);
  if (size >= 100 || value === 0) return whole.format(value);
  if (size >= 10) return value.toFixed(1);
  return size >= 1 ? value.toFixed(2) : size >= 0.001 ? value.toFixed(3) : value.toExponential(1);
}

function ms(value) {
  if (value >= 60_000) return s(value / 1000);
  return value >= 1000 ? `${number(value / 1000)} s` : `${value >= 10 || value === 0 ? whole.format(value) : value.toFixed(1)} ms`;
}

export function s(value) {
  if (value >= 5400) return `${number(value / 3600)} h`;
  if (value >= 90) return `${number(value / 60)} min`;
  return value >= 1 || value <= 0 ? `${number(value)} s` : `${whole.format(value * 1000)} ms`;
}

function bytes(value) {
  let size = 0;
  while (value >= 1000 && size < SIZES.length - 1) { value /= 1000; size += 1; }
  return `${size ? number(value) : whole.format(value)} ${SIZES[size]}`;
}

const rate = value => (value === 0 ? "0" : value >= 100 ? whole.format(value) : value.toFixed(1));
export const fixed = value => value.toFixed(3);

export const AS = {
  int: value => whole.format(value), number, ms, s, bytes, rate, fixed,
  share: value => `${(100 * value).toFixed(1)} %`,
  "bytes/s": value => `${bytes(value)}/s`,
};
export const IS_RATE = new Set(["rate", "bytes/s"]);

export const percent = value => `${value > 0 ? "+" : ""}${(100 * value).toFixed(1)} %`;

export function ago(then_ms, now_ms) {
  const elapsed_s = Math.max(0, (now_ms - then_ms) / 1000);
  if (elapsed_s < 60) return `${Math.floor(elapsed_s)} s ago`;
  if (elapsed_s < 3600) return `${Math.floor(elapsed_s / 60)} min ago`;
  return elapsed_s < 172_800 ? `${Math.floor(elapsed_s / 3600)} h ago` : `${Math.floor(elapsed_s / 86_400)} d ago`;
}
