// What outlives a reload. Storage may be full or switched off: then the page works all the same.

const PREFIX = `nemo-trt:${new URL("../", import.meta.url).pathname}:`; // two mounts share an origin

/** What was written under a name, or null; `area` is localStorage or sessionStorage by name. */
export function read(name, area = "localStorage") {
  try {
    return JSON.parse(window[area].getItem(PREFIX + name));
  } catch {
    return null;
  }
}

/** Keep a value; null removes it. */
export function write(name, value, area = "localStorage") {
  try {
    if (value === null) window[area].removeItem(PREFIX + name);
    else window[area].setItem(PREFIX + name, JSON.stringify(value));
  } catch {
    // Nothing is lost that the page shows.
  }
}
