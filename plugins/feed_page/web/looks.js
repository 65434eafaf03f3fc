// How an item looks: its own title, text, price and media; else a picture made of its id: palette, background, and an
// emblem. Nothing is said of it that its fields don't say.

import { readable } from "./app.js";
import { make } from "./dom.js";
import { pattern } from "./patterns.js";
import { Draws, hash } from "./seeded.js";

const LAYOUTS = ["above", "below", "corner"];
const MOODS = ["night", "vivid", "paper", "night", "vivid"];
const MOTIONS = ["bob", "sway", "beat", "hop", "roll"];
const DEFAULT_MS = 12_000;

/** Computes an item's appearance as plain values; the same on each device, but for fonts. */
export function looksOf(app, item) {
  const draws = new Draws(`cover ${item.item_id}`);
  const values = app.valuesOf(item);
  const title = String(app.shownOf(item, "title") ?? item.item_id);
  const own = Number(item.fields?.hue);
  const hue = item.fields?.hue != null && Number.isFinite(own) ? own : hueOf(values[0]?.value ?? item.item_id);
  const emblem = String(app.shownOf(item, "emblem") ?? "");
  const duration = Number(app.shownOf(item, "duration"));
  return {
    title,
    text: textOf(app.shownOf(item, "text")),
    price: textOf(app.shownOf(item, "price")),
    values,
    hue,
    emblem: emblem && isDrawable(emblem) ? emblem : initials(values[0]?.value ?? title),
    video: mediaUrl(app.shownOf(item, "video")),
    picture: mediaUrl(app.shownOf(item, "picture")),
    layout: draws.pick(LAYOUTS),
    motion: draws.pick(MOTIONS),
    tilt: draws.int(-7, 7),
    palette: paletteOf(hue + draws.int(-10, 10), draws),
    pattern: pattern(draws),
    duration_ms: duration > 0 ? duration : DEFAULT_MS,
  };
}

export const hueOf = (text) => hash(String(text).toLowerCase()) % 360;

/** Up to two initials of a text. */
export function initials(text) {
  return readable(text).split(/\s+/).slice(0, 2).map((word) => [...word][0]?.toUpperCase() ?? "").join("");
}

const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

/** Whether a font here draws a text: letters always; a picture shows by its colours. */
function isDrawable(text) {
  if (/^[\p{L}\p{N}]+$/u.test(text)) return true;
  const side = 16;
  pen.canvas.width = pen.canvas.height = side;
  pen.font = `${side - 4}px sans-serif`;
  pen.textBaseline = "top";
  pen.fillText(text, 0, 0);
  const { data } = pen.getImageData(0, 0, side, side);
  return data.some((value, i) => i % 4 < 2 && data[i - (i % 4) + 3] && value !== data[i + 1]);
}

function textOf(value) {
  return value === undefined ? "" : typeof value === "number" ? value.toLocaleString() : String(value);
}

/** An item's address of a picture or video: https, or of this server. Any other is left out. */
function mediaUrl(value) {
  if (typeof value !== "string" || !value || !URL.canParse(value, location.href)) return null;
  const url = new URL(value, location.href);
  return url.protocol === "https:" || url.origin === location.origin ? url.href : null;
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

/** The item's own video, which plays while its card does (see player.js), or picture; null without any. */
function mediaOf({ video, picture }) {
  if (!(video ?? picture)) return null;
  const media = make(video ? "video" : "img", "media");
  if (video) Object.assign(media, { muted: true, loop: true, playsInline: true, preload: "auto", poster: picture ?? "" });
  else media.alt = "";
  media.src = video ?? picture;
  return media;
}

/** Builds the cover into an element: with the title, unless it stands elsewhere. Text is never markup. */
export function paint(host, looks, withTitle = true) {
  const words = withTitle ? [make("div", "words", titleOf(looks.title))] : [];
  const media = mediaOf(looks);
  if (media) {
    media.addEventListener("error", () => {
      if (media.parentElement === host) paint(host, { ...looks, video: null, picture: looks.video && looks.picture }, withTitle);
    }, { once: true });
    host.dataset.mood = "media";
    host.style.setProperty("--ink", "#fff");
    return host.replaceChildren(media, ...words);
  }
  const { colours, ink, mood } = looks.palette;
  colours.forEach((value, i) => host.style.setProperty(`--c${i + 1}`, value));
  host.style.setProperty("--ink", ink);
  host.style.setProperty("--tilt", `${looks.tilt}deg`);
  Object.assign(host.dataset, { mood, layout: looks.layout, motion: looks.motion, pattern: looks.pattern.name });
  host.innerHTML = looks.pattern.svg;
  const emblem = make("div", "emblem", looks.emblem);
  emblem.dataset.length = String([...looks.emblem].length);
  host.append(make("div", "art", make("div", "hero", make("div", "plate"), emblem)), ...words);
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
