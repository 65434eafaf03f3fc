// Deterministic random numbers from ids: a cover is the same on every device.

/** A 32-bit hash of a text (FNV-1a with a final mix, so that neighbouring ids differ widely). */
export function hash(text) {
  let h = 0x811c9dc5;
  for (const char of String(text)) {
    h = Math.imul(h ^ char.codePointAt(0), 0x01000193);
  }
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

/** A sequence of random draws from one seed: `next()` is in [0, 1). */
export class Draws {
  constructor(seed) {
    this.state = hash(seed);
  }

  next() {
    this.state = (this.state + 0x9e3779b9) >>> 0;
    let x = this.state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return ((x ^ (x >>> 15)) >>> 0) / 2 ** 32;
  }

  between(low, high) {
    return low + (high - low) * this.next();
  }

  int(low, high) {
    return Math.floor(this.between(low, high + 1));
  }

  pick(list) {
    return list[Math.floor(this.next() * list.length)];
  }

  chance(p) {
    return this.next() < p;
  }
}
