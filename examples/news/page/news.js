// A front page of twelve articles. A click reports itself with the slate that it was made on; the next slate
// is drawn from what the reader has clicked.
import { element, recommend, report, userId } from "./api.js";

const SURFACE = "front";
const byId = (id) => document.getElementById(id);
const device = matchMedia("(max-width: 40rem)").matches ? "phone" : "desktop";

async function newSlate() {
  byId("article").hidden = true;
  byId("message").textContent = "Loading …";
  try {
    const slate = await recommend({ n: 12, surface: SURFACE, context: { device } });
    byId("slate").replaceChildren(...slate.items.map((item) => teaser(slate, item)));
    byId("message").textContent = `${slate.items.length} articles, chosen by step ${slate.stamp.step} of the model`;
    document.body.dataset.request = slate.request_id;
    confirm(slate);
  } catch (error) {
    byId("message").textContent = `No front page now: ${error.message}`;
  }
}

/** Says that the slate is on the screen: without it, or a click, its articles don't count as shown. */
function confirm(slate) {
  if (document.hidden) document.addEventListener("visibilitychange", () => confirm(slate), { once: true });
  else if (slate.items.length) report(slate, slate.items[0].item_id, "seen", SURFACE).catch(() => {});
}

function teaser(slate, item) {
  const { title, category, published } = item.fields;
  const button = element("button", { onclick: () => open(slate, item) },
    element("span", { className: "soft", textContent: `${category}, ${age(published)}` }),
    element("strong", { textContent: title }));
  button.dataset.item = item.item_id;
  button.dataset.category = category;
  return element("li", {}, button);
}

function open(slate, item) {
  report(slate, item.item_id, "click", SURFACE).then(() => { document.body.dataset.reported = item.item_id; },
    (error) => { byId("message").textContent = error.message; });
  const article = byId("article");
  article.querySelector("h2").textContent = item.fields.title;
  article.querySelector("p").textContent = `By ${item.fields.author}. The text of this article is left to you.`;
  article.hidden = false;
  article.focus();
}

function age(published) {
  const hours = Math.max(0, Math.round((Date.now() - published) / 3_600_000));
  return hours ? `${hours} h ago` : "just now";
}

byId("reader").textContent = `Reader ${userId}`;
byId("again").onclick = byId("back").onclick = newSlate;
newSlate();
