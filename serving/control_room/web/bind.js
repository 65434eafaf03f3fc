// Numbers and the samples that they are: every element with data-metric shows that sample of the picture.

import { AS, IS_RATE } from "./format.js";
import { put } from "./dom.js";

/** The series of a picture that is meant: where replicas have names, that of the one that was asked. */
export function resolve(picture, series) {
  if (series in picture.samples || !picture.asked) return series;
  const [name, labels] = series.split("{");
  const own = labels ? labels.slice(0, -1).split(/,(?=\w+=")/) : [];
  const named = `${name}{${[...own, `replica="${picture.asked}"`].sort().join(",")}}`;
  return named in picture.samples ? named : series;
}

export function valueOf(picture, series, as) {
  const of = IS_RATE.has(as) ? picture.rates : picture.samples;
  return of[resolve(picture, series)] ?? null;
}

/** Writes every number. What isn't known is a dash: it is never 0. */
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

/** The values that a label has among the series of a name; `before`: labels that stand before it, as written. */
export function labelled(picture, name, label, before = "") {
  const begins = `${name}{${before}${label}="`;
  return Object.keys(picture.samples).filter(series => series.startsWith(begins)).map(series => series.slice(begins.length, -2));
}
