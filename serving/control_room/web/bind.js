// Binds elements to samples: every element with data-metric shows that sample of the picture.

import { AS, IS_RATE } from "./format.js";
import { put } from "./dom.js";

/** Resolves a series; where replicas have names, to that of the replica that was scraped. */
export function resolve(picture, series) {
  if (series in picture.samples || !picture.asked) return series;
  const [name, labels] = series.split("{");
  const pairs = labels ? labels.slice(0, -1).split(/,(?=\w+=")/) : [];
  const named = `${name}{${[...pairs, `replica="${picture.asked}"`].sort().join(",")}}`;
  return named in picture.samples ? named : series;
}

export function valueOf(picture, series, as) {
  const values = IS_RATE.has(as) ? picture.rates : picture.samples;
  return values[resolve(picture, series)] ?? null;
}

/** Writes every number; a dash, not 0, for an unknown one. */
export function bind(picture) {
  for (const element of document.querySelectorAll("[data-metric]")) {
    const { metric, as, bad } = element.dataset;
    element.dataset.asked ??= metric;
    const series = resolve(picture, element.dataset.asked);
    if (series !== metric) element.dataset.metric = series;
    const value = valueOf(picture, series, as);
    put(element, value === null ? "–" : AS[as](value));
    if (bad) element.classList.toggle("bad", value > 0);
  }
}

/** Values of a label among the series of a name; `before`: preceding labels, as written in the series. */
export function labelled(picture, name, label, before = "") {
  const prefix = `${name}{${before}${label}="`;
  return Object.keys(picture.samples).filter(series => series.startsWith(prefix)).map(series => series.slice(prefix.length, -2));
}
