// Panels of lists: replicas, tables, parts and dead letters.

import { labelled, resolve } from "./bind.js";
import { el, metric, part, put, redraw } from "./dom.js";
import { ago } from "./format.js";

const STAMP = [["epoch", "recsys_epoch"], ["step", "recsys_step"], ["items at", "recsys_catalogue_offset"], ["item state at", "recsys_item_state_offset"], ["items", "recsys_items"], ["gaps", "recsys_delta_gaps"]];
const BAD = new Set(["backoff", "lost", "stalled", "orphaned", "unchecked", "gone"]);

export function drawPanels(picture) {
  drawVersion(picture);
  drawReplicas(picture);
  drawTables(picture);
  drawParts(picture);
  drawLetters(picture);
  redraw(part("quarantined"), picture.panels.quarantined, (names) => names.map(name => el("span", { class: "chip" }, name)));
}

function drawVersion(picture) {
  const version = picture.panels.served;
  part("version").hidden = !version;
  if (version) put(part("line"), `${version.line} / ${version.epoch} / `);
}

function drawReplicas(picture) {
  const names = Object.keys(picture.replicas), answers = resolve(picture, "recsys_step") in picture.samples, line = picture.panels.served?.line ?? "–";
  const single = !names.length;
  put(part("of-replicas"), !answers ? "" : single ? "one replica" : `${names.length} answered within a minute; each scrape reaches one, so rows show their age`);
  redraw(part("replicas"), [names, answers, line], () => {
    if (!answers) return [el("caption", { class: "quiet" }, "No replica answers yet.")];
    const head = el("tr", {}, ...["replica", "line", ...STAMP.map(([name]) => name), "asked"].map(name => el("th", { scope: "col" }, name)));
    const rows = (single ? [""] : names).map(name => el("tr", {}, el("th", { scope: "row" }, name || "the replica"), el("td", {}, line),
      ...STAMP.map(([, series]) => el("td", {}, metric(name ? `${series}{replica="${name}"}` : series, "int"))), el("td", { data: { met: name } }, "now")));
    return [el("thead", {}, head), el("tbody", {}, ...rows)];
  });
  for (const cell of document.querySelectorAll("[data-met]")) {
    const scraped_ms = picture.replicas[cell.dataset.met];
    put(cell, scraped_ms === undefined || scraped_ms === picture.time_ms ? "now" : ago(scraped_ms, picture.time_ms));
  }
}

function drawTables(picture) {
  const tables = labelled(picture, "recsys_shards_table_rows", "table"), shards = labelled(picture, "recsys_shards_shard_step", "shard");
  redraw(part("tables"), [tables, shards], () => {
    if (!tables.length) return [el("caption", { class: "quiet" }, "No shard answers yet.")];
    const head = el("tr", {}, ...["table", "rows", "memory", "awaiting admission"].map(name => el("th", { scope: "col" }, name)));
    const rows = tables.map(name => el("tr", {}, el("th", { scope: "row" }, name),
      ...[["rows", "int"], ["bytes", "bytes"], ["waiting", "int"]].map(([what, as]) => el("td", {}, metric(`recsys_shards_table_${what}{table="${name}"}`, as)))));
    const steps = shards.map(name => el("span", { class: "chip" }, `shard ${name} at `, metric(`recsys_shards_shard_step{shard="${name}"}`, "int")));
    return [el("caption", { class: "chips" }, ...steps), el("thead", {}, head), el("tbody", {}, ...rows)];
  });
}

function drawParts(picture) {
  const { parts, lost } = picture.panels;
  const rows = parts.map(({ name, state, failure }) => [name, state, lost[name] ?? failure, lagsOf(picture, name)]);
  const ready = parts.filter(({ state }) => state === "ready" || state === "done").length;
  put(part("of-parts"), `${ready} of ${parts.length} are ready; their logs are in ${picture.panels.logs}`);
  redraw(part("parts"), rows, () => rows.map(([name, state, why, topics]) => el("li", { data: { state: BAD.has(state) ? "bad" : state } },
    el("h3", {}, el("i", { "aria-hidden": "true" }), name),
    el("p", { class: "state", title: `recsys_part_state{part="${name}",state="${state}"}` }, state),
    el("dl", {}, row("restarts", metric(`recsys_part_restarts_total{part="${name}"}`, "int", { tag: "dd", data: { bad: "above-0" } })),
      ...topics.map(topic => row(`${topic} to read`, metric(`recsys_part_lag{part="${name}",topic="${topic}"}`, "int", { tag: "dd" })))),
    why ? el("p", { class: "why" }, why) : null)));
}

const row = (name, value) => el("div", {}, el("dt", {}, name), value);

const lagsOf = (picture, name) => labelled(picture, "recsys_part_lag", "topic", `part="${name}",`);

function drawLetters(picture) {
  const { letters } = picture.panels;
  redraw(part("letters"), letters, () => (letters.length ? letters.map(letter => el("li", {},
    el("p", {}, el("b", {}, letter.topic), ` partition ${letter.partition}, offset ${letter.offset}`), el("p", { class: "quiet" }, letter.reason)))
    : [el("li", { class: "none" }, "All records were readable.")]));
}
