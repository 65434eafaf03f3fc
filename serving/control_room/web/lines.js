// What `control` tells: the live pointer, candidates, decisions with their evidence, alarms of drift.

import { el, part, put, redraw } from "./dom.js";
import { ago, number } from "./format.js";

export function drawLines(picture) {
  const { control } = picture.panels, now = Math.floor(picture.time_ms / 10_000);
  const { live } = control;
  put(part("live"), live ? `live is ${live.line}, epoch ${live.epoch}${live.candidate ? `, once ${live.candidate}` : ""}` : "nothing is live yet");
  drawTrack(control.candidates);
  redraw(part("candidates"), control.candidates, () => control.candidates.filter(its => its.stage !== "ended").map(its => el("li", { data: { stage: its.stage } },
    el("b", {}, its.line), el("span", { class: "chip" }, its.share ? `${its.stage}, ${(100 * its.share).toFixed(0)} % of users` : its.stage), el("p", { class: "quiet" }, its.why))));
  redraw(part("decisions"), [control.decisions, now], () => (control.decisions.length ? control.decisions.slice(0, 12).map(its => decision(its, picture.time_ms))
    : [el("li", { class: "none" }, "Nothing was decided yet.")]));
  drawDrift(control, picture.time_ms, now);
}

const TRACK = [["shadow", "scores the stream, answers nobody"], ["canary", "answers a few users"], ["live", "answers everybody"]];

function drawTrack(candidates) {
  const counts = TRACK.map(([stage]) => candidates.filter(its => its.stage.startsWith(stage === "live" ? "taking over" : stage) || its.stage === stage).length);
  redraw(part("track"), counts, () => TRACK.map(([stage, what], n) => el("li", { data: { stage, there: counts[n] } },
    el("b", {}, stage), el("span", { data: { record: "control" } }, counts[n] ? `${counts[n]} here` : ""), el("small", {}, what))));
}

function decision(its, now_ms) {
  const [tone, head] = told(its);
  const evidence = Object.entries(its.evidence ?? {});
  return el("li", { data: { tone }, title: `control, offset ${its.at}` },
    el("p", {}, el("b", {}, head), el("time", {}, its.time_ms ? ago(its.time_ms, now_ms) : "")),
    its.why || its.reason ? el("p", { class: "quiet" }, its.why || its.reason) : null,
    evidence.length ? el("details", {}, el("summary", {}, `evidence: ${evidence.length} numbers`),
      el("dl", { class: "evidence" }, ...evidence.map(([name, value]) => el("div", {}, el("dt", {}, name.replaceAll("_", " ")), el("dd", { data: { record: `control@${its.at}` } }, number(value)))))) : null);
}

function told(its) {
  if (its.type === "live") return ["good", `${its.line} ${its.epoch} is live${its.candidate ? `: ${its.candidate}` : ""}`];
  if (its.type === "candidate") return ["plain", `${its.line} wants to be live`];
  if (its.type === "wish") return ["plain", `a person asked: ${its.what} ${its.line}`];
  const tone = { promote: "good", rollback: "bad" }[its.said] ?? "plain";
  return [tone, `${its.said} ${its.line}${its.to ? ` to ${its.to}` : ""}${its.final ? ", for good" : ""}`];
}

function drawDrift(control, now_ms, now) {
  const { reaction, alarms } = control;
  put(part("reaction"), reaction?.because?.length ? `newest reaction: ${reaction.because.join("; ")}` : "no reaction holds");
  redraw(part("alarms"), [alarms, now], () => (alarms.length ? alarms.slice(0, 8).map(its => el("li", { data: { tone: "warn" }, title: `control, offset ${its.at}` },
    el("p", {}, el("b", {}, `${its.kind} of ${its.what}`), el("time", {}, ago(its.at_ms, now_ms))),
    el("p", { class: "quiet" }, `${number(its.found)}, expected ${number(its.expected)} ± ${number(its.scale)}; step ${its.step}, ${its.detector}`)))
    : [el("li", { class: "none" }, "No alarm on record.")]));
}
