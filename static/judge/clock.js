// How long the comparison on show has been looked at: only while the page is visible and somebody moves or types.

const READABLE_MS = 150; // A key that comes sooner was meant for the comparison before.
const IDLE_MS = 30000; // Nobody reads longer than this without moving anything.

let shownAt = 0;
let firstKeyAt = 0;
let activeMs = 0;
let lastSeenAt = 0;

export function restart() {
  shownAt = lastSeenAt = performance.now();
  firstKeyAt = 0;
  activeMs = 0;
}

export function touched() {
  const now = performance.now();
  if (document.visibilityState === "visible") activeMs += Math.min(now - lastSeenAt, IDLE_MS);
  lastSeenAt = now;
}

export function decided() {
  touched();
  firstKeyAt ||= performance.now();
}

export function tooSoon() {
  return performance.now() - shownAt < READABLE_MS;
}

/** The times that go with a judgment. */
export function times() {
  touched();
  return {
    first_key_ms: Math.round((firstKeyAt || performance.now()) - shownAt),
    active_ms: Math.round(activeMs),
  };
}

for (const kind of ["pointermove", "wheel", "scroll"]) addEventListener(kind, touched, { passive: true, capture: true });
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") lastSeenAt = performance.now();
  else touched();
});
