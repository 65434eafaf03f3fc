// The examples of README.md: compiled against the built package, and compared with the page by examples.test.ts.

import { ApiError, Client, type RecommendedItem, Tracker } from "recsys-swipe";

declare const fetchUserToken: () => Promise<string>;
declare const draw: (item: RecommendedItem) => HTMLElement;
declare const feed: HTMLElement;
declare const process: { env: Record<string, string | undefined> };

export async function aFeed(): Promise<void> {
  const client = new Client({ url: "https://feed.example.org", key: fetchUserToken });
  const tracker = new Tracker({ client, userId: "u42" });

  const list = await client.recommend({ user_id: "u42", n: 10 });
  for (const item of list.items) {
    const target = { list, itemId: item.item_id };
    const card = draw(item); // an element of yours
    tracker.observe(card, target);
    card.addEventListener("dblclick", () => tracker.track("like", target));
    feed.append(card);
  }
}

export async function onAServer(): Promise<void> {
  const client = new Client({ url: "http://127.0.0.1:8000", key: process.env.RECSYS_KEY! });
  await client.upsertItems([{ item_id: "v7", fields: { author: "a3", tags: ["cats"] } }]);
  await client.upsertUsers([{ user_id: "u42", fields: { country: "NZ" } }]);
  const ranked = await client.rank({ user_id: "u42", candidate_ids: ["v7", "v8"] });
  try {
    await client.sendEvents([{ user_id: "u42", item_id: "v7", request_id: ranked.request_id, kind: "click" }]);
  } catch (error) {
    if (error instanceof ApiError && error.passing) console.log("the server is away; send them again later");
  }
}
