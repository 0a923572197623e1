// One decision, one key. The next pair is already in the page: the key shows it at once, while the judgment is on its way.

import { Queue } from "./queue.js";

const desk = document.querySelector("[data-desk]");
const bar = document.getElementById("verdicts");
const empty = document.getElementById("empty");
const note = document.getElementById("note");
const announce = document.getElementById("announce");
const state = document.getElementById("state");

const KEYS = { ArrowLeft: "left", ArrowRight: "right", 0: "tie", b: "both_bad" };
const ACTS = { s: "skip", u: "undo", g: "guidelines", "?": "keys" };
const SAID = { left: "Left chosen.", right: "Right chosen.", tie: "About the same.", both_bad: "Both bad.", skip: "Skipped." };
const READABLE_MS = 150; // A key that comes sooner was meant for the pair before.
const IDLE_MS = 30000; // Nobody reads longer than this without moving anything.

const handled = new Map(); // comparison id -> its article, for undo without a line
let shown = null;
let shownAt = 0;
let firstKeyAt = 0;
let activeMs = 0;
let lastSeenAt = 0;
let polling = 0;

const other = "BroadcastChannel" in window ? new BroadcastChannel("pairwright.judge") : null;
const queue = new Queue(`${desk.dataset.owner}.${desk.dataset.base}`, desk.dataset.base, {
  state: showState,
  answer: (html, item) => {
    take(html);
    handled.get(item.body.comparison_id)?.replaceChildren();
  },
  refused: (html) => {
    say(html);
    if (tasks().length < 2) poll(100);
  },
  held,
});

function tasks() {
  return [...desk.querySelectorAll("[data-task]")];
}

/** Comparison ids that this browser has already: in the page, or judged and not yet sent. */
function held() {
  const waiting = queue.items().map((item) => item.body.comparison_id);
  return [...new Set([...tasks().map((task) => task.dataset.comparison), ...waiting])];
}

function showState(word, waiting) {
  state.dataset.state = word === "signed-out" ? "stopped" : word;
  if (word === "waiting") {
    const why = navigator.onLine ? "waiting for the line" : "offline";
    state.textContent = `${why}, ${waiting} waiting`;
  } else if (word === "signed-out") {
    const link = document.createElement("a");
    link.href = `/sign-in?next=${encodeURIComponent(location.pathname)}`;
    link.textContent = `signed out: sign in again, ${waiting} waiting`;
    state.replaceChildren(link);
  } else {
    state.textContent = word === "saving" ? "saving" : "all saved";
  }
}

/** Shows a message from the server where the person is looking; it leaves with the next decision. */
function say(html) {
  const message = new DOMParser().parseFromString(html, "text/html").querySelector(".notice");
  note.replaceChildren(message ?? "The server refused this judgment; nothing else was lost.");
  note.hidden = false;
}

/** Brings what the server sent into the page: comparisons not seen yet, and the new count. */
function take(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const known = new Set(held());
  for (const task of page.querySelectorAll("[data-task]")) {
    const id = task.dataset.comparison;
    if (known.has(id) || (handled.has(id) && !("again" in task.dataset))) continue;
    handled.delete(id);
    task.hidden = true;
    if ("again" in task.dataset) putBack(task);
    else empty.before(task);
  }
  const tally = page.getElementById("tally");
  if (tally) document.getElementById("tally").replaceWith(tally);
  if (!shown) show(tasks()[0]);
  if (tasks().length < 2) poll();
}

function putBack(task) {
  if (shown) shown.hidden = true;
  shown = null;
  desk.querySelector("[data-task]")?.before(task);
  if (!task.isConnected) empty.before(task);
  show(task);
}

function show(task, said = "") {
  shown = task ?? null;
  empty.hidden = Boolean(task);
  bar.hidden = !task && document.getElementById("tally").dataset.tally === "0";
  for (const button of bar.querySelectorAll('[name="verdict"], [data-act="skip"]')) button.disabled = !task;
  if (!task) {
    announce.textContent = `${said} No pair is ready yet.`;
    poll();
    return;
  }
  task.hidden = false;
  task.classList.add("arrives");
  desk.scrollTop = 0;
  shownAt = lastSeenAt = performance.now();
  firstKeyAt = 0;
  activeMs = 0;
  // A text's raw form comes along hidden; it is not said as well.
  const parts = task.querySelectorAll(".question .who, .question .shown, .question .text:not(:has(.shown))");
  const asked = [...parts].map((one) => one.textContent).join(" ").replace(/\s+/g, " ").trim();
  announce.textContent = `${said} Next comparison. ${asked.slice(0, 200)}`;
}

function touched() {
  const now = performance.now();
  if (document.visibilityState === "visible") activeMs += Math.min(now - lastSeenAt, IDLE_MS);
  lastSeenAt = now;
}

function newKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
}

function choose(verdict) {
  if (!shown || performance.now() - shownAt < READABLE_MS) return;
  touched();
  const key = newKey();
  const { comparison, order } = shown.dataset;
  const body = {
    comparison_id: comparison,
    key,
    verdict,
    order,
    guideline_version: desk.dataset.guidelines,
    first_key_ms: Math.round((firstKeyAt || performance.now()) - shownAt),
    active_ms: Math.round(activeMs),
  };
  leave(verdict, { key, to: "judgments", body });
}

function skip() {
  if (!shown || performance.now() - shownAt < READABLE_MS) return;
  leave("skip", { key: newKey(), to: "skip", body: { comparison_id: shown.dataset.comparison } });
}

/** Takes the pair on show out of the page, shows the next, and sends what was decided. */
function leave(verdict, item) {
  const task = shown;
  handled.set(task.dataset.comparison, task);
  task.remove();
  task.classList.remove("arrives");
  note.hidden = true;
  mark(verdict);
  show(tasks()[0], SAID[verdict]);
  other?.postMessage(task.dataset.comparison);
  queue.add(item);
}

/** Colours the button of what was just chosen, for a moment. */
function mark(verdict) {
  const button = bar.querySelector(`[value="${verdict}"]`);
  if (!button) return;
  button.classList.add("chosen");
  setTimeout(() => button.classList.remove("chosen"), 350);
}

async function undo() {
  if (queue.running) await queue.running;
  const waiting = queue.pop();
  if (waiting) {
    const task = handled.get(waiting.body.comparison_id);
    handled.delete(waiting.body.comparison_id);
    if (task) putBack(task);
    else location.reload(); // Decided before a reload: its lease is still ours, so the page shows it again.
    return;
  }
  const answer = await queue.post("undo", {});
  if (!answer) showState("waiting", 0);
  else if (answer.status === 401) showState("signed-out", 0);
  else if (answer.ok) {
    note.hidden = true;
    take(answer.text);
  } else say(answer.text);
}

/** Asks for pairs while the page has too few, more patiently each time. */
function poll(wait = 1500) {
  if (polling) return;
  polling = setTimeout(async () => {
    const answer = document.visibilityState === "visible" ? await queue.post("next", {}) : null;
    polling = 0;
    if (answer?.ok) take(answer.text);
    else if (answer?.status === 401) return showState("signed-out", queue.items().length);
    if (tasks().length < 2) {
      clearTimeout(polling);
      polling = 0;
      poll(shown ? Math.min(wait * 1.6, 15000) : Math.min(wait * 1.2, 4000));
    }
  }, wait);
}

function act(name) {
  if (name === "skip") skip();
  else if (name === "undo") undo();
  else document.getElementById(name).showModal();
}

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in KEYS) && !(key in ACTS)) return;
  event.preventDefault();
  touched();
  firstKeyAt ||= performance.now();
  if (key in ACTS) act(ACTS[key]);
  else if (bar.querySelector(`[value="${KEYS[key]}"]`)) choose(KEYS[key]);
});

bar.addEventListener("submit", (event) => event.preventDefault());
bar.addEventListener("click", (event) => {
  const button = event.target.closest("button, a");
  if (!button) return;
  event.preventDefault();
  if (event.detail > 1 && button.name === "verdict") return; // The second half of a double click is not a second judgment.
  firstKeyAt ||= performance.now();
  if (button.name === "verdict") choose(button.value);
  else act(button.dataset.act);
});

for (const kind of ["pointermove", "wheel", "scroll"]) addEventListener(kind, touched, { passive: true, capture: true });
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") lastSeenAt = performance.now();
  else touched();
});

// The same person in another tab has the same leases: what is judged there leaves this page as well.
other?.addEventListener("message", ({ data }) => {
  const task = tasks().find((one) => one.dataset.comparison === data);
  if (!task) return;
  handled.set(data, task);
  task.remove();
  if (task === shown) show(tasks()[0], "Judged in another tab.");
  if (tasks().length < 2) poll(300);
});

// The text scrolls, not the page: with the focus here, space and page keys scroll it.
if (document.activeElement === document.body) desk.focus({ preventScroll: true });

// What waited while this browser was closed leaves the page, then goes to the server.
for (const item of queue.items()) tasks().find((one) => one.dataset.comparison === item.body.comparison_id)?.remove();
show(tasks()[0]);
if (queue.items().length) queue.send();
else if (tasks().length < 2) poll();
