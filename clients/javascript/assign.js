// Arm assignment, identical to the server's (experiments/assignment/policy.py), for clients that need the arm before
// a request. tests/experiments/assignment/test_assign_js.py compares the two.

const SEED = 0n; // the server's
const MASK = (1n << 64n) - 1n;
const C1 = 0x87c37b91114253d5n;
const C2 = 0x4cf5ad432745937fn;

const rotate = (x, by) => ((x << by) | (x >> (64n - by))) & MASK;
const times = (x, y) => (x * y) & MASK;

function mix(k) {
  k = times(k ^ (k >> 33n), 0xff51afd7ed558ccdn);
  k = times(k ^ (k >> 33n), 0xc4ceb9fe1a85ec53n);
  return k ^ (k >> 33n);
}

/** The little-endian number of up to eight bytes. */
function word(bytes, from, to) {
  let number = 0n;
  for (let at = Math.min(to, bytes.length) - 1; at >= from; at -= 1) {
    number = (number << 8n) | BigInt(bytes[at]);
  }
  return number;
}

/** The first half of MurmurHash3 x64 128 (Appleby 2011) of a text in UTF-8, as a BigInt. */
export function hash64(text, seed = SEED) {
  const bytes = new TextEncoder().encode(text);
  const whole = bytes.length - (bytes.length % 16);
  let h1 = seed;
  let h2 = seed;
  const first = (k) => times(rotate(times(k, C1), 31n), C2);
  const second = (k) => times(rotate(times(k, C2), 33n), C1);
  for (let at = 0; at < whole; at += 16) {
    h1 = rotate(h1 ^ first(word(bytes, at, at + 8)), 27n);
    h1 = ((((h1 + h2) & MASK) * 5n) + 0x52dce729n) & MASK;
    h2 = rotate(h2 ^ second(word(bytes, at + 8, at + 16)), 31n);
    h2 = ((((h2 + h1) & MASK) * 5n) + 0x38495ab5n) & MASK;
  }
  h2 ^= second(word(bytes, whole + 8, whole + 16));
  h1 ^= first(word(bytes, whole, whole + 8));
  h1 ^= BigInt(bytes.length);
  h2 ^= BigInt(bytes.length);
  h1 = (h1 + h2) & MASK;
  h2 = (h2 + h1) & MASK;
  return (mix(h1) + mix(h2)) & MASK;
}

/** A draw in [0, 1) from any ids. Ids beyond 2^53 must be texts. */
export function uniform(...ids) {
  return Number(hash64(ids.map(String).join("\x1f")) >> 11n) / 2 ** 53;
}

/**
 * The name of a user's arm, or null for a user outside the experiment.
 *
 * `experiment`: {name, layer, salt, offset, traffic, arms: [{name, share}, …]}, arms in the file's order.
 * The file's traffic ignores the ramp and a stop, so that users may get arms who have none on the server: pass the
 * current traffic, 0 once stopped. The stamp of an answer is authoritative.
 */
export function assign(user, { name, layer = "ranking", salt = "", offset = 0, traffic = 1, arms }) {
  const place = uniform("layer", layer, user);
  if (!(offset <= place && place < offset + traffic)) {
    return null;
  }
  let draw = uniform("arm", name, salt, user);
  for (const arm of arms) {
    if (draw < arm.share) {
      return arm.name;
    }
    draw -= arm.share;
  }
  return arms[arms.length - 1].name; // the shares sum to 1, except for rounding
}
