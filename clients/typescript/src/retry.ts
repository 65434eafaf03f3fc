// Waits between attempts, and which failures pass. Pure: randomness and time are handed in.

/** Waits of a retried call. */
export interface Backoff {
  firstMs: number;
  longestMs: number;
}

const PASSING = new Set([0, 408, 425, 429, 500, 502, 503, 504, 507]);

/** Whether a retry may succeed. Status 0: no answer came. */
export function isPassing(status: number): boolean {
  return PASSING.has(status);
}

/** Wait after a number of failures in a row: it doubles up to the longest, and is at least the server's Retry-After.
 * `random` in [0, 1) spreads clients that failed at the same moment: over half of the wait. */
export function waitMs(failures: number, random: number, retryAfterMs: number, backoff: Backoff): number {
  const grown = Math.min(backoff.longestMs, backoff.firstMs * 2 ** Math.min(30, Math.max(0, failures - 1)));
  return Math.max(grown * (0.5 + 0.5 * random), retryAfterMs * (1 + 0.5 * random));
}

/** Milliseconds of a Retry-After header in seconds; 0 without one. */
export function retryAfterMs(header: string | null): number {
  const seconds = Number(header ?? "");
  return Number.isFinite(seconds) && seconds > 0 ? seconds * 1000 : 0;
}
