// The key m: texts as they were written, character by character, instead of as they are set. The choice is remembered.

const NAME = "pairwright.raw";
const root = document.documentElement;

function remembered() {
  try {
    return localStorage.getItem(NAME) === "1";
  } catch {
    return false;
  }
}

function apply(raw) {
  root.classList.toggle("raw-text", raw);
  for (const button of document.querySelectorAll("[data-raw]")) button.setAttribute("aria-pressed", String(raw));
}

/** Shows every text on the page as it was written, or as it is set again; says which. */
export function toggleRaw() {
  const raw = !root.classList.contains("raw-text");
  apply(raw);
  try {
    localStorage.setItem(NAME, raw ? "1" : "0");
  } catch {
    // No storage in this browser: the choice lasts as long as the page.
  }
  const announce = document.getElementById("announce");
  if (announce) announce.textContent = raw ? "Texts as written." : "Texts as set.";
  return raw;
}

apply(remembered());
document.addEventListener("htmx:after:swap", () => apply(root.classList.contains("raw-text")));

// The judge page has keys of its own and calls toggleRaw() itself.
if (!document.querySelector("[data-desk]")) {
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, [contenteditable], dialog[open]");
    if (event.key !== "m" || typing || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector(".text .raw")) toggleRaw();
  });
  document.addEventListener("click", (event) => {
    if (event.target.closest("[data-raw]")) toggleRaw();
  });
}
