// Cuts lists into batches, and makes ids. Pure but for the randomness of an id.

const ENCODER = new TextEncoder();

/** Size of a value as JSON in UTF-8. */
export function bytesOf(value: unknown): number {
  return ENCODER.encode(JSON.stringify(value)).length;
}

/** Most bytes of a batch; the server takes 1 MB of at most 40,000 values in JSON … */
export const MAX_BYTES = 400_000;
const VALUE_BYTES = 11; // … so that each is as large as this or larger

/** Batches of at most `maxCount` values and `maxBytes` of JSON; a larger value is a batch of its own. */
export function batchesOf<T>(values: Iterable<T>, maxCount: number, maxBytes: number): T[][] {
  const batches: T[][] = [];
  let batch: T[] = [];
  let bytes = 0;
  for (const value of values) {
    const json = JSON.stringify(value);
    const size = Math.max(ENCODER.encode(json).length, VALUE_BYTES * (json.match(/[,[{]/g)?.length ?? 0)) + 1;
    if (batch.length === maxCount || (batch.length > 0 && bytes + size > maxBytes)) {
      batches.push(batch);
      batch = [];
      bytes = 0;
    }
    batch.push(value);
    bytes += size;
  }
  if (batch.length > 0) batches.push(batch);
  return batches;
}

/** At most the first `count` values. */
export function* firstOf<T>(values: Iterable<T>, count: number): Iterable<T> {
  let left = count;
  for (const value of values) {
    if (left-- <= 0) return;
    yield value;
  }
}

/** Random UUID; crypto.randomUUID exists on https and localhost only, not on a LAN address. */
export function newId(): string {
  if (crypto.randomUUID !== undefined) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
