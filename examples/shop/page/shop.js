// A shop: products for a visitor, and beside each product those that are similar. Clicks and purchases name the
// list that they were made from.
import { element, recommend, report, userId } from "./api.js";

const byId = (id) => document.getElementById(id);
let chosen = null; // list, item and surface of the product on the page
let newest = 0; // a slower answer to an earlier request is ignored

async function show(heading, surface, fetchList) {
  byId("heading").textContent = heading;
  byId("message").textContent = "Loading …";
  byId("list").replaceChildren();
  newest += 1;
  const request = newest;
  try {
    const list = await fetchList();
    if (request !== newest) return;
    byId("list").replaceChildren(...list.items.map((item) => tile(list, item, surface)));
    byId("message").textContent = list.items.length ? "" : "Nothing here yet.";
    document.body.dataset.request = list.request_id;
  } catch (error) {
    if (request === newest) byId("message").textContent = `No list now: ${error.message}`;
  }
}

function showHome() {
  byId("product").hidden = true;
  return show("For you", "shop", () => recommend({ n: 12, surface: "shop" }));
}

function tile(list, item, surface) {
  const button = element("button", { onclick: () => open(list, item, surface) },
    element("strong", { textContent: item.fields.title }),
    element("span", { className: "soft", textContent: `${item.fields.price} €` }));
  button.dataset.item = item.item_id;
  button.dataset.category = item.fields.category;
  return element("li", {}, button);
}

function open(list, item, surface) {
  chosen = { list, item, surface };
  send("click");
  byId("title").textContent = item.fields.title;
  byId("price").textContent = `${item.fields.price} €`;
  byId("bought").textContent = "";
  byId("product").hidden = false;
  byId("product").focus();
  const path = `similar/${encodeURIComponent(item.item_id)}?user_id=${encodeURIComponent(userId)}`;
  return show("Similar products", "similar", async () => {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
    return answer.json();
  });
}

async function send(kind) {
  const { list, item, surface } = chosen;
  try {
    const receipt = await report(list, item.item_id, kind, surface);
    document.body.dataset.reported = `${kind} ${item.item_id} ${receipt.unproven}`;
    if (kind === "purchase") byId("bought").textContent = "Yours.";
  } catch (error) {
    byId("message").textContent = error.message;
  }
}

byId("visitor").textContent = `Visitor ${userId}`;
byId("home").onclick = showHome;
byId("buy").onclick = () => send("purchase");
showHome();
