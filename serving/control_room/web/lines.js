// Promotion and drift, from the topic `control`: live version, candidates, decisions with evidence, alarms.

import { el, part, put, redraw } from "./dom.js";
import { ago, number } from "./format.js";

export function drawLines(picture) {
  const { control } = picture.panels, now = Math.floor(picture.time_ms / 10_000);
  const { live } = control;
  put(part("live"), live ? `live is ${live.line}, epoch ${live.epoch}${live.candidate ? `, once ${live.candidate}` : ""}` : "nothing is live yet");
  drawTrack(control.candidates);
  redraw(part("candidates"), control.candidates, () => control.candidates.filter(candidate => candidate.stage !== "ended").map(candidate => el("li", { data: { stage: candidate.stage } },
    el("b", {}, candidate.line), el("span", { class: "chip" }, candidate.share ? `${candidate.stage}, ${(100 * candidate.share).toFixed(0)} % of users` : candidate.stage), el("p", { class: "quiet" }, candidate.why))));
  redraw(part("decisions"), [control.decisions, now], () => (control.decisions.length ? control.decisions.slice(0, 12).map(record => decision(record, picture.time_ms))
    : [el("li", { class: "none" }, "No decisions yet.")]));
  drawDrift(control, picture.time_ms, now);
}

const TRACK = [["shadow", "scores the stream, serves nobody"], ["canary", "serves a few users"], ["live", "serves everybody"]];

function drawTrack(candidates) {
  const counts = TRACK.map(([stage]) => candidates.filter(candidate => candidate.stage.startsWith(stage === "live" ? "taking over" : stage) || candidate.stage === stage).length);
  redraw(part("track"), counts, () => TRACK.map(([stage, what], n) => el("li", { data: { stage, there: counts[n] } },
    el("b", {}, stage), el("span", { data: { record: "control" } }, counts[n] ? `${counts[n]} here` : ""), el("small", {}, what))));
}

function decision(record, now_ms) {
  const [tone, head] = headline(record);
  const evidence = Object.entries(record.evidence ?? {});
  return el("li", { data: { tone }, title: `control, offset ${record.at}` },
    el("p", {}, el("b", {}, head), el("time", {}, record.time_ms ? ago(record.time_ms, now_ms) : "")),
    record.why || record.reason ? el("p", { class: "quiet" }, record.why || record.reason) : null,
    evidence.length ? el("details", {}, el("summary", {}, `evidence: ${evidence.length} numbers`),
      el("dl", { class: "evidence" }, ...evidence.map(([name, value]) => el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", { data: { record: `control@${record.at}` } }, number(value)))))) : null);
}

function headline(record) {
  if (record.type === "live") return ["good", `${record.line} ${record.epoch} is live${record.candidate ? `: ${record.candidate}` : ""}`];
  if (record.type === "candidate") return ["plain", `${record.line} was proposed`];
  if (record.type === "wish") return ["plain", `an operator requested: ${record.what} ${record.line}`];
  if (record.type === "line_hold") return ["bad", `${record.line} ${record.epoch} is held: ${record.action || "nothing can serve in its place"}`];
  const tone = { promote: "good", rollback: "bad" }[record.said] ?? "plain";
  return [tone, `${record.said} ${record.line}${record.to ? ` to ${record.to}` : ""}${record.final ? ", for good" : ""}`];
}

function drawDrift(control, now_ms, now) {
  const { alarms } = control;
  redraw(part("alarms"), [alarms, now], () => (alarms.length ? alarms.slice(0, 8).map(alarm => el("li", { data: { tone: "warn" }, title: `control, offset ${alarm.at}` },
    el("p", {}, el("b", {}, `${alarm.kind} of ${alarm.what}`), el("time", {}, ago(alarm.at_ms, now_ms))),
    el("p", { class: "quiet" }, `${number(alarm.measured)}, expected ${number(alarm.expected)} ± ${number(alarm.scale)}; step ${alarm.step}, ${alarm.detector}`)))
    : [el("li", { class: "none" }, "No alarm on record.")]));
}
