// Creates elements. Text is never parsed as markup.

/** make("b", "large", "text", child, …): an element with a class and children. */
export function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/** A bar whose filled length is set by the style --share. */
export const track = () => make("span", "track", make("i"));

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
