// Settings in local storage, which private browsing may forbid.

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
