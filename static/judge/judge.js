// One decision, one key. The next comparison is already in the page: the key shows it at once, while the judgment is on
// its way.

import * as clock from "./clock.js";
import { Drafts } from "./drafts.js";
import { Extras } from "./extras.js";
import { newKey } from "./key.js";
import { Queue } from "./queue.js";
import { Ranking } from "./rank.js";

const desk = document.querySelector("[data-desk]");
const bar = document.getElementById("verdicts");
const acts = document.getElementById("acts");
const reasons = document.getElementById("reasons");
const note = document.getElementById("note");
const announce = document.getElementById("announce");
const state = document.getElementById("state");
const revising = "revise" in desk.dataset;
const history = `${desk.dataset.base}/history`;

const SIDES = { ArrowLeft: "left", ArrowRight: "right" };
const KEYS = { 0: "tie", b: "both_bad" };
const ACTS = { s: "skip", u: "undo", g: "guidelines", "?": "keys", f: "flag", r: "why", e: "better", d: "differences", h: "history", m: "raw" };
const SAID = { left: "Left chosen.", right: "Right chosen.", tie: "About the same.", both_bad: "None is good.", skip: "Skipped." };
const DEGREES = ["", "barely", "slightly", "clearly", "much"];

const handled = new Map(); // comparison id -> its article, for undo without a line and for what the server refuses
let shown = null;
let mode = "";
let polling = 0;
let differences = remembered("pairwright.differences") === "on";

const other = "BroadcastChannel" in window ? new BroadcastChannel("pairwright.judge") : null;
const drafts = new Drafts(desk.dataset.base);
const extras = new Extras(document.getElementById("panel"), acts, { changed, home: () => desk });
const ranking = new Ranking(document.getElementById("ranking"), {
  moved: (said) => {
    clock.decided();
    note.hidden = true;
    announce.textContent = said;
    changed();
  },
  said: (said) => (announce.textContent = said),
});
const queue = new Queue(`${desk.dataset.owner}.${desk.dataset.base}`, desk.dataset.base, {
  state: showState,
  answer: (html, item) => {
    if (revising && item.body.back) return location.assign(history);
    take(html);
    handled.get(item.body.comparison_id)?.replaceChildren();
  },
  refused,
  held,
});

function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(name, value);
    return localStorage.getItem(name);
  } catch {
    return value ?? null; // no storage in this browser: the choice lives as long as the page
  }
}

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

/** Shows a message where the person is looking; it leaves with the next decision. */
function say(message) {
  note.replaceChildren(message);
  note.hidden = false;
  desk.scrollTop = 0;
}

function words(text) {
  const message = document.createElement("p");
  message.className = "notice caution";
  message.textContent = text;
  return message;
}

function notice(html) {
  const found = new DOMParser().parseFromString(html, "text/html").querySelector(".notice");
  return found ?? words("The server refused this judgment; nothing else was lost.");
}

/** What the server cannot take as it is comes back to be mended, with all that was typed. */
function refused(html, item, status) {
  const { comparison_id: id } = item.body;
  const task = handled.get(id);
  if (item.to === "judgments" && status === 422 && task?.hasChildNodes()) {
    handled.delete(id);
    putBack(task);
  } else if (item.to === "judgments" && (item.body.rationale || item.body.ideal)) {
    // Decided before a reload: what was typed is on the server when the comparison shows again.
    const { rationale, ideal, edited_from } = item.body;
    drafts.send(id, { rationale, ideal, edited_from });
  }
  say(notice(html));
  if (tasks().length < 2) poll(100);
}

/** Brings what the server sent into the page: comparisons not seen yet, the new count, a notice. */
function take(html) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const known = new Set(held());
  const empty = page.getElementById("empty");
  if (empty) document.getElementById("empty").replaceWith(empty);
  for (const task of page.querySelectorAll("[data-task]")) {
    const id = task.dataset.comparison;
    if (known.has(id) || (handled.has(id) && !("again" in task.dataset))) continue;
    handled.delete(id);
    task.hidden = true;
    if ("again" in task.dataset) putBack(task);
    else document.getElementById("empty").before(task);
  }
  const notice = page.querySelector("[data-notice]");
  if (notice) {
    note.replaceChildren(notice);
    note.hidden = false;
  }
  const tally = page.getElementById("tally");
  if (tally) document.getElementById("tally").replaceWith(tally);
  const told = page.querySelector("[data-notice]");
  if (told) say(told);
  document.getElementById("empty").hidden = Boolean(shown);
  if (!shown) show(tasks()[0]);
  if (tasks().length < 2) poll();
}

function putBack(task) {
  if (shown) shown.hidden = true;
  shown = null;
  desk.querySelector("[data-task]")?.before(task);
  if (!task.isConnected) document.getElementById("empty").before(task);
  show(task);
}

function show(task, said = "") {
  shown = task ?? null;
  const empty = document.getElementById("empty");
  empty.hidden = Boolean(task);
  bar.hidden = !task && document.getElementById("tally").dataset.tally === "0";
  for (const button of bar.querySelectorAll('[name], [data-act="skip"], [data-act="rank"]')) button.disabled = !task;
  reasonsOpen(false);
  extras.show(shown);
  if (!task) {
    announce.textContent = `${said} ${empty.querySelector("h2").textContent}.`;
    poll();
    return;
  }
  setMode(Number(task.dataset.count) > 2 ? "rank" : "pair");
  task.hidden = false;
  task.classList.add("arrives");
  desk.scrollTop = 0;
  clock.restart();
  if (mode === "rank") showRanking(task);
  else if (differences) setTimeout(() => markDifferences(announce.textContent));
  if (revising) markSaid(JSON.parse(task.dataset.draft ?? "{}"));
  // A text's raw form comes along hidden; it is not said as well.
  const parts = task.querySelectorAll(".question .who, .question .shown, .question .text:not(:has(.shown))");
  const asked = [...parts].map((one) => one.textContent).join(" ").replace(/\s+/g, " ").trim();
  announce.textContent = `${said} Next comparison. ${asked.slice(0, 200)}`;
}

/** The bar and the list of keys are those of a pair, or of a ranking. */
function setMode(wanted) {
  if (mode === wanted) return;
  mode = wanted;
  for (const one of document.querySelectorAll("[data-for]")) one.hidden = ![mode, "any"].includes(one.dataset.for);
  for (const one of document.querySelectorAll("[data-word-for]")) one.hidden = one.dataset.wordFor !== mode;
}

function showRanking(task) {
  const order = orderOf(task);
  const { tiers, typed } = JSON.parse(task.dataset.draft ?? "{}");
  const usable = Array.isArray(tiers) && tiers.flat().length === order.length && tiers.flat().every((p) => order.includes(p));
  ranking.show(task, usable ? tiers.map((tier) => tier.map((p) => order.indexOf(p))) : null, Number(typed) || 0);
}

/** Canonical positions as served. */
function orderOf(task) {
  return task.dataset.order.split(",").map(Number);
}

function tiersOf(task) {
  const order = orderOf(task);
  return ranking.tiers().map((tier) => tier.map((i) => order[i]));
}

/** Something beside the verdict was typed or moved: the server keeps a draft of it. */
function changed() {
  const [task, id] = [shown, shown.dataset.comparison];
  drafts.soon(id, () => {
    const draft = { ...extras.kept.get(id) };
    if (task === shown && mode === "rank" && ranking.touched) Object.assign(draft, { tiers: tiersOf(task), typed: ranking.typed });
    task.dataset.draft = JSON.stringify(draft);
    return draft;
  });
}

/** Takes a decision: `answer` is {verdict, strength} or {tiers}. */
function choose(answer, said) {
  if (!shown || clock.tooSoon()) return false;
  const long = extras.tooLong();
  if (long) {
    extras.open(long.id === "ideal" ? "better" : "why");
    say(words(`This text has ${[...extras.said[long.id]].length} characters; ${long.dataset.most} are taken. Shorten it, then judge.`));
    return false;
  }
  const key = newKey();
  const { comparison, order } = shown.dataset;
  const body = {
    comparison_id: comparison,
    key,
    ...answer,
    order,
    guideline_version: desk.dataset.guidelines,
    ...clock.times(),
    ...extras.body(),
    ...(revising ? { back: "history" } : {}),
  };
  if (mode === "rank") shown.dataset.draft = JSON.stringify({ tiers: tiersOf(shown) }); // for undo
  drafts.forget(comparison);
  leave({ key, to: "judgments", body }, said);
  return true;
}

/** A side, by how much where that is said, a tie, or both bad. */
function chooseSide(verdict, strength = 0) {
  const degree = strength ? ` By strength ${DEGREES[strength]}.` : "";
  const answer = strength ? { verdict, strength } : { verdict };
  if (!choose(answer, SAID[verdict] + degree)) return;
  mark(strength ? `[value="${verdict}.${strength}"]` : `[name="verdict"][value="${verdict}"]`);
}

function takeOrder() {
  if (!shown || clock.tooSoon()) return;
  const question = ranking.question();
  if (question) return say(words(question));
  const tiers = tiersOf(shown);
  choose({ tiers: tiers.map((tier) => tier.join()).join("|") }, "Order taken.");
}

function reasonsOpen(open) {
  if (reasons.hidden === !open) return;
  const inside = reasons.contains(document.activeElement);
  reasons.hidden = !open;
  acts.hidden = open;
  if (open) reasons.querySelector("button").focus();
  else if (inside) desk.focus({ preventScroll: true });
}

function skip(reason = "") {
  reasonsOpen(false);
  if (!shown || clock.tooSoon()) return;
  const { comparison } = shown.dataset;
  drafts.forget(comparison);
  leave({ key: newKey(), to: "skip", body: { comparison_id: comparison, ...(reason && { reason }) } }, SAID.skip);
}

/** Takes the comparison on show out of the page, shows the next, and sends what was decided. */
function leave(item, said) {
  const task = shown;
  handled.set(task.dataset.comparison, task);
  task.remove();
  task.classList.remove("arrives");
  note.hidden = true;
  show(tasks()[0], said);
  // The focus was on something of the one before: reading goes on from the top.
  if (document.activeElement === document.body || ranking.strip.contains(document.activeElement)) desk.focus({ preventScroll: true });
  other?.postMessage(task.dataset.comparison);
  queue.add(item);
}

/** Colours the button of what was just chosen, for a moment. */
function mark(selector) {
  const button = [...bar.querySelectorAll(selector)].find((one) => !one.closest("[hidden]"));
  if (!button) return;
  button.classList.add("chosen");
  setTimeout(() => button.classList.remove("chosen"), 350);
}

/** What was answered before, while it is being changed. */
function markSaid({ verdict, strength }) {
  const selector = strength ? `[value="${verdict}.${strength}"]` : `[name="verdict"][value="${verdict}"]`;
  for (const one of bar.querySelectorAll(selector)) {
    one.classList.add("chosen");
    one.setAttribute("aria-pressed", "true");
  }
}

async function undo() {
  if (revising) return;
  drafts.now();
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
  } else say(notice(answer.text));
}

/** Asks for comparisons while the page has too few, more patiently each time. */
function poll(wait = 1500) {
  if (polling || revising) return;
  polling = setTimeout(async () => {
    const answer = document.visibilityState === "visible" ? await queue.post("next", {}) : null;
    polling = 0;
    if (answer?.ok) take(answer.text);
    else if (answer?.status === 401) return showState("signed-out", queue.items().length);
    if (tasks().length < 2) {
      clearTimeout(polling);
      polling = 0;
      const stopped = "stop" in document.getElementById("empty").dataset;
      poll(shown || stopped ? Math.min(wait * 1.6, 15000) : Math.min(wait * 1.2, 4000));
    }
  }, wait);
}

/** Underlines the words in which the two answers differ, or stops doing so. */
async function markDifferences(said = "") {
  const task = shown;
  const button = acts.querySelector('[data-act="differences"]');
  button.setAttribute("aria-pressed", String(differences));
  try {
    const { toggleDifferences } = await import("./differences.js");
    if (task !== shown || mode !== "pair") return;
    const [left, right] = ["left", "right"].map((side) => task.querySelector(`[data-answer="${side}"]`));
    toggleDifferences(left, right, differences);
    if (said) announce.textContent = `${said} ${announce.textContent}`; // the next comparison is announced first
  } catch {
    button.hidden = true; // it could not be loaded: nothing is marked, nothing else is different
  }
}

/** Shows the texts as they were written, or as they are set again. */
async function showRaw() {
  const { toggleRaw } = await import("../text.js").catch(() => ({}));
  toggleRaw?.();
  if (differences && mode === "pair" && shown) markDifferences(announce.textContent);
}

/** What the better answer would begin as: what was chosen before, or what stands first in the order. */
function bestKnown() {
  const order = orderOf(shown);
  if (mode === "rank") return ranking.touched ? order[ranking.row[0]] : null;
  const { verdict } = JSON.parse(shown.dataset.draft ?? "{}");
  return { left: order[0], right: order[1] }[verdict] ?? null;
}

function act(name) {
  if (name === "skip") {
    if (shown && !revising) reasonsOpen(true);
  } else if (name === "undo") undo();
  else if (name === "rank") takeOrder();
  else if (name === "raw") showRaw();
  else if (name === "history") location.assign(history);
  else if (name === "better") extras.open(name, shown && bestKnown());
  else if (name === "flag" || name === "why") extras.open(name);
  else if (name === "differences") {
    if (mode !== "pair") return;
    differences = !differences;
    remembered("pairwright.differences", differences ? "on" : "off");
    markDifferences();
  } else document.getElementById(name).showModal();
}

/** Whether a key stands for something here; if so, it has been done. */
function pressed(key, event) {
  if (!reasons.hidden) {
    const options = [...reasons.querySelectorAll("[data-reason]")];
    const chosen = key === "s" ? options[0] : /^[1-9]$/.test(key) ? options[Number(key)] : null;
    if (key === "Escape") reasonsOpen(false);
    else if (chosen) skip(chosen.dataset.reason);
    return key === "Escape" || Boolean(chosen);
  }
  if (key === "Escape" && !extras.panel.hidden) return extras.close() ?? true;
  if (key === "Escape" && revising) return location.assign(history) ?? true;
  if (key in ACTS && acts.querySelector(`[data-act="${ACTS[key]}"]`)) return act(ACTS[key]) ?? true;
  if (["g", "?", "h"].includes(key) || (key === "m" && desk.querySelector(".text > .raw"))) return act(ACTS[key]) ?? true;
  if (!shown) return false;
  if (key in KEYS && bar.querySelector(`[name="verdict"][value="${KEYS[key]}"]`)) return chooseSide(KEYS[key]) ?? true;
  if (mode === "rank") {
    const elsewhere = event.target.closest("a, button") && !event.target.closest(".chip");
    if (key === "Enter" && !elsewhere) return takeOrder() ?? true;
    return ranking.key(key);
  }
  if (key in SIDES) return chooseSide(SIDES[key]) ?? true;
  const strong = /^[1-8]$/.test(key) && bar.querySelectorAll('[name="choice"]')[Number(key) - 1];
  if (strong) press(strong);
  return Boolean(strong);
}

/** A button that decides. */
function press(button) {
  if (button.name !== "choice") return chooseSide(button.value);
  const [side, strength] = button.value.split(".");
  chooseSide(side, Number(strength));
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, textarea, select, #panel")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key.length === 1 && remembered("pairwright.keys") === "off") return;
  if (event.repeat && !(mode === "rank" && (key === "ArrowUp" || key === "ArrowDown"))) return;
  clock.decided();
  if (pressed(key, event)) event.preventDefault();
});

bar.addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("click", (event) => {
  const button = event.target.closest("#verdicts button, [data-act], [data-place]");
  if (!button || button.closest(".chips")) return;
  event.preventDefault();
  const decides = button.name === "verdict" || button.name === "choice";
  if (event.detail > 1 && decides) return; // The second half of a double click is not a second judgment.
  clock.decided();
  if (decides) press(button);
  else if ("reason" in button.dataset) skip(button.dataset.reason);
  else if ("reasonNot" in button.dataset) reasonsOpen(false);
  else if ("place" in button.dataset) ranking.type(Number(button.dataset.place));
  else act(button.dataset.act);
});

const single = document.getElementById("single-keys");
single.checked = remembered("pairwright.keys") !== "off";
single.addEventListener("change", () => remembered("pairwright.keys", single.checked ? "on" : "off"));

// The same person in another tab has the same leases: what is judged there leaves this page as well.
other?.addEventListener("message", ({ data }) => {
  const task = revising ? null : tasks().find((one) => one.dataset.comparison === data);
  if (!task) return;
  drafts.forget(data);
  handled.set(data, task);
  task.remove();
  if (task === shown) show(tasks()[0], "Judged in another tab.");
  if (tasks().length < 2) poll(300);
});

// The text scrolls, not the page: with the focus here, space and page keys scroll it.
if (document.activeElement === document.body) desk.focus({ preventScroll: true });

// What waited while this browser was closed leaves the page, then goes to the server.
if (!revising) for (const item of queue.items()) tasks().find((one) => one.dataset.comparison === item.body.comparison_id)?.remove();
show(tasks()[0]);
if (queue.items().length) queue.send();
else if (tasks().length < 2) poll();
