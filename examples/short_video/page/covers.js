// An item's picture: its own video or image, else one generated from its id: palette, background, emoji, title and
// three scenes.

import { make } from "./dom.js";
import { pattern } from "./patterns.js";
import { Draws } from "./seeded.js";
import { topicOf } from "./topics.js";

const TITLES = [
  (x) => `${x}, in one take`,
  (x) => `POV: ${x}`,
  (x, n) => `Day ${n} of ${x}`,
  (x) => `${x}, but slowly`,
  (x) => `Nobody warned me about ${x}`,
  (x) => `The quiet art of ${x}`,
  (x) => `${x}, explained badly`,
  (x) => `One minute of ${x}`,
  (x, n) => `${x}: part ${n}`,
  (x) => `I tried ${x} so you don’t have to`,
  (x) => `Rating ${x} out of ten`,
  (x) => `Ask me about ${x}`,
  (x) => `Small joys: ${x}`,
  (x) => `${x}, the director’s cut`,
  (x) => `In defence of ${x}`,
  (x) => `${x}. That’s the video.`,
];
const MIDDLES = ["wait for it…", "keep watching", "it gets better", "look closely", "and then", "almost there", "no, really"];
const ENDINGS = ["there it is", "that’s all, folks", "once more?", "worth it", "see you tomorrow", "chef’s kiss", "10/10, again"];
const LAYOUTS = ["above", "below", "corner", "crowd"];
const MOODS = ["night", "vivid", "paper", "night", "vivid"];
const MOTIONS = ["bob", "sway", "beat", "hop", "roll"];

const DEFAULT_MS = 12_000;

/** Computes a cover as plain values; deterministic per item. */
export function coverOf(item) {
  const draws = new Draws(`cover ${item.item_id}`);
  const topic = topicOf(item);
  const fields = item.fields ?? {};
  const title = draws.pick(TITLES)(draws.pick(topic.subjects), draws.int(2, 90));
  const duration = Number(fields.duration_ms);
  return {
    topic,
    video: mediaUrl(fields.video),
    image: mediaUrl(fields.image),
    title: fields.title ? String(fields.title) : title[0].toUpperCase() + title.slice(1),
    lines: ["", draws.pick(MIDDLES), draws.pick(ENDINGS)],
    emoji: topic.emoji,
    layout: draws.pick(LAYOUTS),
    motion: draws.pick(MOTIONS),
    tilt: draws.int(-7, 7),
    palette: paletteOf(topic.hue + draws.int(-10, 10), draws),
    pattern: pattern(draws),
    duration_ms: duration > 0 ? duration : DEFAULT_MS,
  };
}

/** An item's address of a picture: https, or of this server. Any other is left out. */
function mediaUrl(value) {
  if (typeof value !== "string" || !value) return null;
  if (!URL.canParse(value, location.href)) return null;
  const url = new URL(value, location.href);
  return url.protocol === "https:" || url.origin === location.origin ? url.href : null;
}

/** The item's own video, which plays while its card does (see player.js), or image. */
function mediaOf({ video, image }) {
  const media = make(video ? "video" : "img", "media");
  if (video) Object.assign(media, { muted: true, loop: true, playsInline: true, preload: "auto", poster: image ?? "" });
  media.src = video ?? image;
  return media;
}

/** Four colours and an ink. "night" and "vivid" carry white text, "paper" dark text. */
function paletteOf(hue, draws) {
  const mood = draws.pick(MOODS);
  const second = hue + draws.pick([38, -42, 60]);
  const third = hue + draws.pick([150, 180, -120, 90]);
  const colour = (l, c, h) => `oklch(${l} ${c} ${((h % 360) + 360) % 360})`;
  const colours = {
    night: [colour(0.23, 0.08, hue), colour(0.36, 0.13, hue), colour(0.63, 0.2, second), colour(0.84, 0.16, third)],
    vivid: [colour(0.5, 0.19, hue), colour(0.58, 0.2, second), colour(0.66, 0.19, hue), colour(0.9, 0.13, third)],
    paper: [colour(0.93, 0.05, hue), colour(0.85, 0.1, hue), colour(0.76, 0.15, second), colour(0.62, 0.2, third)],
  }[mood];
  return { mood, colours, ink: mood === "paper" ? colour(0.24, 0.09, hue) : "#fff" };
}

/** Builds the cover into a card. Titles are inserted as text, never as markup. */
export function paint(host, cover) {
  if (cover.video ?? cover.image) {
    const media = mediaOf(cover);
    media.addEventListener("error", () => {
      if (media.parentElement === host) paint(host, { ...cover, video: null, image: cover.video ? cover.image : null });
    }, { once: true });
    host.dataset.mood = "media";
    host.style.setProperty("--ink", "#fff");
    return host.replaceChildren(media, make("div", "words", titleOf(cover.title)));
  }
  const { colours, ink, mood } = cover.palette;
  colours.forEach((value, i) => host.style.setProperty(`--c${i + 1}`, value));
  host.style.setProperty("--ink", ink);
  host.style.setProperty("--tilt", `${cover.tilt}deg`);
  Object.assign(host.dataset, { mood, layout: cover.layout, motion: cover.motion, pattern: cover.pattern.name });
  host.innerHTML = cover.pattern.svg;
  const scenes = cover.emoji.slice(0, 3).map((emoji, i) => make("div", `emoji scene-${i}`, emoji));
  const art = make("div", "art", make("div", "hero", make("div", "plate"), ...scenes));
  if (cover.layout === "crowd") {
    const extras = Array.from({ length: 12 }, (_, i) => make("div", "extra", cover.emoji[i % cover.emoji.length]));
    art.append(make("div", "crowd", ...extras));
  } else {
    art.append(...cover.emoji.slice(1, 4).filter((emoji) => emoji !== cover.emoji[0]).map((emoji, i) => make("div", `satellite s${i}`, emoji)));
  }
  const lines = cover.lines.slice(1).map((line, i) => make("div", `line scene-${i + 1}`, line));
  host.append(art, make("div", "words", titleOf(cover.title), ...lines));
}

function titleOf(text) {
  const title = make("div", "title");
  text.split(" ").forEach((word, i) => {
    const part = make("span", "", word);
    part.style.setProperty("--i", String(i));
    title.append(part, " ");
  });
  return title;
}
