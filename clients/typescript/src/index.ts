export type * from "./api.js";
export { ApiError, type CallOptions, Client, type ClientOptions, type Key } from "./client.js";
export type { KeyValueStore } from "./queue.js";
export type { Backoff } from "./retry.js";
export { type Target, Tracker, type TrackerOptions, type TrackerStats } from "./tracker.js";
