// Settings in local storage and the user token of a tab. Private browsing may forbid storage.

const TOKEN = "swipe.token";

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

/** User token that the page was opened with, as `#token=…` or `<meta name="user-token">`; "" without one. A fragment
 * isn't sent to the server, and leaves the address at once. */
function takeToken() {
  const opened = new URLSearchParams(location.hash.slice(1)).get("token");
  if (opened) history.replaceState(null, "", location.pathname + location.search);
  const token = opened ?? document.querySelector('meta[name="user-token"]')?.content;
  try {
    if (token) sessionStorage.setItem(TOKEN, token);
    return token ?? sessionStorage.getItem(TOKEN) ?? "";
  } catch {
    return token ?? "";
  }
}

export const userToken = takeToken();
