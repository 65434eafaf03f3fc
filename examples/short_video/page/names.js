// Readable names for numeric ids of viewers and authors.

import { hash } from "./seeded.js";

const FIRST = (
  "amber brave calm clever cosmic crisp dapper dizzy eager fancy gentle giddy golden happy hazel idle jolly " +
  "kind lucky mellow merry misty neon nimble noble patient plucky quiet rapid rosy silent silver sleepy sunny " +
  "swift tidy velvet vivid witty zesty"
).split(" ");
const SECOND = (
  "otter:🦦 fox:🦊 panda:🐼 koala:🐨 tiger:🐯 frog:🐸 owl:🦉 whale:🐳 octopus:🐙 bee:🐝 hedgehog:🦔 sloth:🦥 " +
  "parrot:🦜 turtle:🐢 penguin:🐧 raccoon:🦝 lion:🦁 hamster:🐹 wolf:🐺 dolphin:🐬 flamingo:🦩 llama:🦙 " +
  "crab:🦀 duck:🦆 bear:🐻 rabbit:🐰 swan:🦢 beaver:🦫 shark:🦈 unicorn:🦄 peacock:🦚 squid:🦑"
).split(" ");

/** {first, second, emoji, hue} of an id; deterministic. */
export function nameOf(id) {
  const h = hash(`name ${id}`);
  const [second, emoji] = SECOND[(h >>> 8) % SECOND.length].split(":");
  return { first: FIRST[h % FIRST.length], second, emoji, hue: (h >>> 14) % 360 };
}

/** Display name of an author: a real name unchanged, a generated handle for a number. */
export function handleOf(author) {
  const text = String(author ?? "someone");
  if (!/^[a-z]{0,3}[-_:]?\d+$/i.test(text)) return text;
  const { first, second } = nameOf(text);
  return `${first}.${second}`;
}
