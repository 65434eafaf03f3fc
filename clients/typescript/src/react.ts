// React hooks around the tracker.

import { useCallback, useEffect, useRef, useState } from "react";

import type { Id, ListRef } from "./api.js";
import { Tracker, type TrackerOptions } from "./tracker.js";

/** A tracker that lives as long as the component; null until it is mounted, and on a server. Another client, user or
 * surface makes another tracker; other options are read when it is made. */
export function useTracker(options: TrackerOptions): Tracker | null {
  const [tracker, setTracker] = useState<Tracker | null>(null);
  const newest = useRef(options);
  newest.current = options;
  const { client, userId, surface } = options;
  useEffect(() => {
    const made = new Tracker(newest.current);
    setTracker(made);
    return () => made.close();
  }, [client, userId, surface]);
  return tracker;
}

/** Callback for the `ref` of the element that shows an item of a list: its views are measured while it is mounted. */
export function useView(tracker: Tracker | null, list: ListRef, itemId: Id): (element: Element | null) => void {
  const shown = useRef<Element | null>(null);
  const { request_id, token } = list;
  return useCallback(
    (element: Element | null) => {
      if (shown.current !== null) tracker?.unobserve(shown.current);
      shown.current = element;
      if (element !== null) tracker?.observe(element, { list: { request_id, ...(token ? { token } : {}) }, itemId });
    },
    [tracker, request_id, token, itemId],
  );
}
