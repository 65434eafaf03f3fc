// Tooltips with a number's metric name, on hover, focus and tap.

export function bindTips() {
  const tip = document.querySelector(".tip");
  const show = event => {
    const over = event.target.closest?.("[data-metric]");
    if (!over) { tip.hidden = true; return; }
    const rate = /rate|\/s/.test(over.dataset.as);
    tip.textContent = rate ? `rate of ${over.dataset.metric}, over 10 s` : over.dataset.metric;
    tip.hidden = false;
    const box = over.getBoundingClientRect(), size = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(innerWidth - size.width - 8, box.left + box.width / 2 - size.width / 2))}px`;
    tip.style.top = `${box.top - size.height - 8 > 0 ? box.top - size.height - 8 : box.bottom + 8}px`;
  };
  for (const kind of ["pointerover", "focusin", "click"]) document.addEventListener(kind, show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
}
