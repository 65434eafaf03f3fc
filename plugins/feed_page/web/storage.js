// Settings in local storage and the user token of a tab. Private browsing may forbid storage.

const TOKEN = "feed.token";

/** Reads a setting from local storage; null if absent or storage is forbidden. */
export function read(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function write(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // the value lasts as long as the page
  }
}

/** User of a token, which the server checks; undefined if it is none, as after an incomplete paste. */
export function subjectOf(token) {
  try {
    const text = atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"));
    return JSON.parse(new TextDecoder().decode(Uint8Array.from(text, (byte) => byte.charCodeAt(0)))).sub;
  } catch {
    return undefined;
  }
}

/** User token that the page was opened with, as `#token=…` or `<meta name="user-token">`; "" without one. A fragment
 * isn't sent to the server, and leaves the address at once. What is no token is ignored. */
function takeToken() {
  const opened = new URLSearchParams(location.hash.slice(1)).get("token");
  if (opened) history.replaceState(null, "", location.pathname + location.search);
  const given = opened ?? document.querySelector('meta[name="user-token"]')?.content;
  const token = subjectOf(given) === undefined ? undefined : given;
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
    return token ?? sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return token ?? "";
  }
}

export const userToken = takeToken();
