// Maps keys and taps to actions. Swiping itself is the browser's scrolling with snap points.

const KEYS = {
  ArrowDown: "next", j: "next", PageDown: "next",
  ArrowUp: "previous", k: "previous", PageUp: "previous",
  " ": "pause", u: "undo", b: "block", d: "drawer", "?": "help", Escape: "close",
};
const DOUBLE_MS = 300;
const DOUBLE_PX = 48;

/** Calls `act(action, of)` for keys and taps; `of`: the kind of an engagement, or where a double tap was, in card
 * coordinates. */
export function listen({ app, stage, act }) {
  const kinds = new Map(app.buttons.map(({ key, kind }) => [key, kind]));
  const keys = app.layout === "list" ? Object.entries(KEYS).filter(([key]) => !/Arrow|Page|^[ jk]$/.test(key)) : Object.entries(KEYS);
  const actions = new Map(keys);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = kinds.has(key) ? "engage" : actions.get(key);
    const pressing = event.target.closest?.("button, a, summary") && (event.key === " " || event.key === "Enter");
    const scrolling = event.target.closest?.(".drawer") && /Arrow|Page/.test(event.key);
    if (!action || pressing || scrolling || event.target.closest?.("input, textarea")) return;
    event.preventDefault();
    const moves = action === "next" || action === "previous";
    if (!event.repeat || moves) act(action, kinds.get(key));
  });

  let last = null;
  stage.addEventListener("click", (event) => {
    const card = event.target.closest(".card");
    if (!card) return;
    if (event.target.closest(".caption")) return act("more");
    const near = last && Math.hypot(event.clientX - last.x, event.clientY - last.y) < DOUBLE_PX;
    if (near && event.timeStamp - last.at < DOUBLE_MS) {
      clearTimeout(last.single);
      last = { ...last, at: event.timeStamp }; // a third tap is one more heart
      const box = card.getBoundingClientRect();
      act("like", { x: event.clientX - box.left, y: event.clientY - box.top });
      return;
    }
    const single = setTimeout(() => act("pause"), DOUBLE_MS);
    last = { x: event.clientX, y: event.clientY, at: event.timeStamp, single };
  });
}

/** Closes a bottom sheet by a downward swipe on its handle; the sheet follows the finger. */
export function dragToClose({ handle, sheet, close }) {
  let start = null;
  handle.addEventListener("pointerdown", (event) => {
    if (event.target.closest("button")) return;
    start = event.clientY;
    handle.setPointerCapture(event.pointerId);
  });
  handle.addEventListener("pointermove", (event) => {
    if (start !== null) sheet.style.setProperty("--drag", `${Math.max(0, event.clientY - start)}px`);
  });
  const release = (event) => {
    if (start === null) return;
    if (event.clientY - start > 70) close();
    start = null;
    sheet.style.removeProperty("--drag");
  };
  handle.addEventListener("pointerup", release);
  handle.addEventListener("pointercancel", release);
}
