// Bodies of the HTTP API, named as on the wire. docs/reference/api.md and the server's /docs describe each field.

/** `7` and `"7"` are the same id. */
export type Id = string | number;
export type Fields = Record<string, unknown>;

/** Kinds that every server accepts; the definition of an app may declare others. */
export type Kind =
  | "view" | "click" | "like" | "follow" | "comment" | "share" | "skip" | "hide" | "profile"
  /** The item's list is on the viewer's screen. */
  | "seen"
  | (string & {});

/** Request for items. */
export interface RecommendRequest {
  user_id: Id;
  /** 1 to 100; default 10. */
  n?: number;
  /** Place where the items are shown; default "feed". */
  surface?: string;
  context?: Fields;
  exclude_ids?: Id[];
  /** Conditions on declared fields of items: a value, a list of values, or a range. */
  filters?: Filters;
  /** Adds predictions and reasons to each item. */
  explain?: boolean;
  /** false: nothing of the viewer's profile and history is used. */
  profiling?: boolean;
}

export type Filters = Record<string, Scalar | Scalar[] | { min?: number; max?: number }>;
type Scalar = string | number | boolean;

/** Request to rank candidates of the caller, at most 1,000; the best 100 come back unless `n` says otherwise. */
export interface RankRequest extends RecommendRequest {
  candidate_ids: Id[];
  /** true: the order is drawn as for a feed, with propensities. */
  explore?: boolean;
  /** false: the user won't see the list; nothing is learned from it. */
  log?: boolean;
}

/** Names a list in engagements with it. */
export interface ListRef {
  request_id: string;
  /** Proof that the server made the list. Nothing is learned without it, unless the API key may attribute. */
  token?: string;
}

export interface RecommendedItem<F = Fields> {
  item_id: Id;
  rank: number;
  score: number | null;
  /** Probability of this item at this rank, given the items above. */
  propensity: number;
  sources: string[];
  fields: F;
  predictions?: Record<string, number> | null;
  reasons?: Fields[] | null;
}

/** Versions that an answer was computed from. */
export interface Stamp {
  line: string;
  epoch: number;
  step: number;
  catalogue_offset: number;
  item_state_offset: number;
  session_offset: number;
  policy: string;
  arms: Record<string, string>;
}

export interface Recommendations<F = Fields> extends ListRef {
  token: string;
  items: RecommendedItem<F>[];
  stamp: Stamp;
  took_ms: number;
  /** Stages that were skipped. */
  degraded: string[];
  /** Candidates of the caller that the list lacks although there was room, with the reason. */
  warnings: { item_id: Id; why: "unknown" | "excluded" | "filtered" | "closed" }[];
}

/** Items that are the same for all viewers. */
export interface ItemList<F = Fields> {
  items: RecommendedItem<F>[];
  degraded: string[];
}

/** Engagement to send. The client adds `type`, and where they are missing `event_id`, `time_ms` and `token`. */
export interface Engagement {
  user_id: Id;
  item_id: Id;
  request_id: string;
  kind: Kind;
  watch_ms?: number;
  /** Such as an amount; the definition of the app declares its meaning. */
  value?: number;
  surface?: string;
  token?: string;
  /** A repeat of an id counts once, so that sending an event again is harmless. */
  event_id?: string;
  time_ms?: number;
}

/** Engagement as it is sent. */
export interface SentEngagement extends Engagement {
  type: "engagement";
  event_id: string;
  time_ms: number;
}

export interface Item<F = Fields> {
  item_id: Id;
  /** A change replaces all fields. */
  fields: F;
  time_ms?: number;
}

export interface User<F = Fields> {
  user_id: Id;
  /** They replace the profile before. */
  fields: F;
  time_ms?: number;
}

/** Wish of a viewer about items whose `field` is or contains `value`; `item_id` for one item. */
export interface Preference {
  user_id: Id;
  field: string;
  value: Id;
  wish: "block" | "mute" | "less" | "none";
  time_ms?: number;
}

export interface FieldError {
  field: string;
  value: string;
  expected: string;
}

export interface Result {
  index: number;
  status: "accepted" | "duplicate" | "rejected";
  error?: FieldError | null;
  /** Of an accepted one: what may be a mistake, such as a misspelt field. */
  warning?: FieldError | null;
}

/** Results of a batch, in the order of what was sent. Accepted means committed to the log. */
export interface Receipt {
  accepted: number;
  duplicates: number;
  rejected: number;
  /** Accepted events that nothing is learned from: their token is missing or wrong. */
  unproven: number;
  results: Result[];
}

export interface Session {
  user_id: Id;
  events: number;
  offset: number;
  last_ms: number;
  topics: { tag: string; weight: number }[];
  recent: { item_id: Id; time_ms: number; watch_ms: number; did: string[]; learned: boolean }[];
}

export interface Status {
  version: { line: string; epoch: number; step: number };
  time_ms: number;
  age_ms: number | null;
  items: number;
  ready: boolean;
  events_per_s: number;
  examples_per_s: number;
  [name: string]: unknown;
}
