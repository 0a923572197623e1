// A message, two answers that are written side by side, one choice. The page that the server renders is the truth; while
// answers are on their way they are plain text in the very places where the stored ones will stand.

import * as clock from "../judge/clock.js";
import { newKey } from "../judge/key.js";
import { events } from "./events.js";

const room = document.querySelector("[data-room]");
const bar = document.getElementById("verdicts");
const compose = document.getElementById("compose");
const field = document.getElementById("message");
const note = document.getElementById("note");
const state = document.getElementById("state");
const announce = document.getElementById("announce");
const pending = document.getElementById("pending");

const KEYS = { ArrowLeft: "left", ArrowRight: "right", 0: "tie", b: "both_bad" };
const ACTS = { s: "skip", u: "undo", g: "guidelines", "?": "keys", h: "history", m: "raw" };
const SAID = { left: "Left chosen.", right: "Right chosen.", tie: "About the same.", both_bad: "Both bad." };
const LATER = [1000, 2000, 4000, 8000, 15000];
const DRAFT = `pairwright.chat.${room.dataset.owner}.${room.dataset.base}`;

let writing = null; // The AbortController of the answers on their way.
let sending = false;

function chat() {
  return document.getElementById("chat");
}

function showState(name, words) {
  state.dataset.state = name;
  state.textContent = words;
}

/** Shows what the chat waits for: the pick, the answers, or a message. */
function settle(focus = true) {
  const { state: wants, turn, chat: id, undo, again } = chat().dataset;
  bar.hidden = wants === "compose" && !writing;
  compose.hidden = !bar.hidden;
  for (const button of bar.querySelectorAll('[name="verdict"], [data-act="skip"]')) button.disabled = wants !== "choose" || Boolean(writing);
  bar.querySelector('[data-act="stop"]').hidden = !writing;
  bar.querySelector('[data-act="skip"]').hidden = Boolean(writing);
  for (const button of document.querySelectorAll('[data-act="end"]')) button.hidden = !id || Boolean(writing);
  compose.querySelector('[data-act="undo"]').hidden = !undo;
  document.getElementById("turn").textContent = turn;
  if (again && !field.value) {
    field.value = again;
    keepDraft();
  }
  if (!bar.hidden) {
    // The pointer rests where it sent the message: until it moves, it points at no side.
    bar.classList.add("still");
    clock.restart();
  }
  if (!focus) return;
  if (bar.hidden) field.focus();
  else room.focus({ preventScroll: true });
}

/** Puts the chat as the server renders it in place of the one on show, and stays where the person reads. */
function take(html, stay = false) {
  const fresh = new DOMParser().parseFromString(html, "text/html").getElementById("chat");
  if (!fresh) return location.reload();
  const top = room.scrollTop;
  chat().replaceWith(fresh);
  if (stay) room.scrollTop = top;
  else look();
}

/** Scrolls to where reading goes on: the message whose answers are there, else the end. */
function look() {
  const asked = chat().querySelector(".spread") && chat().querySelector(".turn:last-child");
  if (!asked) room.scrollTop = room.scrollHeight;
  else room.scrollTop += asked.getBoundingClientRect().top - room.getBoundingClientRect().top - 24;
}

/** One answer on its way, in paragraphs as the stored one will have them. */
class Page {
  constructor(place) {
    this.place = place;
    this.clear();
  }

  clear() {
    this.text = "";
    this.place.replaceChildren();
  }

  write(text) {
    this.text += text;
    const paragraphs = this.text.split(/\n{2,}/);
    const known = Math.max(0, this.place.children.length - 1);
    while (this.place.children.length < paragraphs.length) this.place.append(document.createElement("p"));
    for (let i = known; i < paragraphs.length; i++) this.place.children[i].textContent = paragraphs[i];
  }
}

function say(html, words = "The server refused this; nothing else was lost.") {
  const message = html && new DOMParser().parseFromString(html, "text/html").querySelector(".notice");
  const plain = document.createElement("div");
  plain.className = "notice";
  plain.textContent = words;
  note.replaceChildren(message || plain);
  note.hidden = false;
}

function keepDraft() {
  try {
    if (field.value) localStorage.setItem(DRAFT, field.value);
    else localStorage.removeItem(DRAFT);
  } catch {
    // No storage in this browser: the words live as long as the page.
  }
}

function signedOut() {
  const link = document.createElement("a");
  link.href = `/sign-in?next=${encodeURIComponent(location.pathname)}`;
  link.textContent = "signed out: sign in again";
  state.dataset.state = "stopped";
  state.replaceChildren(link);
}

async function send() {
  const message = field.value.trim();
  if (writing || sending || !message || room.dataset.closed) return;
  note.hidden = true;
  writing = new AbortController();
  const before = chat().cloneNode(true);
  const places = begin(message);
  settle();
  showState("saving", "writing");
  announce.textContent = "Two answers are being written.";
  let stored = false;
  try {
    const answer = await fetch(`${room.dataset.base}/chat/turns`, {
      method: "POST",
      body: new URLSearchParams({ message }),
      redirect: "error",
      signal: writing.signal,
    });
    if (answer.status === 401) signedOut();
    if (!answer.ok) say(await answer.text());
    else stored = await hear(answer, places);
  } catch {
    if (writing.signal.aborted) say("", "Stopped. Nothing of this turn was stored; your message is in the field.");
    else say("", "The line broke before both answers were there. Nothing of this turn was stored; your message is in the field.");
  }
  writing = null;
  if (state.dataset.state !== "stopped") showState("saved", "all saved");
  if (stored) {
    field.value = "";
    keepDraft();
    announce.textContent = "Both answers are there. Choose one.";
  } else {
    chat().replaceWith(before);
    look();
    announce.textContent = "";
  }
  settle();
}

/** The person's words and two empty pages to write on. */
function begin(message) {
  const piece = pending.content.cloneNode(true);
  piece.querySelector("[data-said]").textContent = message;
  let question = chat().querySelector(".question");
  if (!question) {
    question = document.createElement("div");
    question.className = "question";
    chat().prepend(question);
  }
  chat().querySelector(".hint")?.remove();
  const turn = piece.querySelector(".turn");
  question.append(turn);
  chat().append(piece.querySelector(".spread"));
  look();
  return [...chat().querySelectorAll(".spread .text")].map((place) => new Page(place));
}

/** Writes what comes; true once the server has stored the turn. */
async function hear(answer, places) {
  for await (const { name, data } of events(answer.body)) {
    if (name === "text") places[data.side].write(data.text);
    else if (name === "again") {
      for (const place of places) place.clear();
      announce.textContent = data.message;
      showState("saving", "writing again");
    } else if (name === "refused") {
      say(data.html);
      return false;
    } else if (name === "done") {
      take(data.html, true);
      return true;
    }
  }
  say("", "The answers broke off. Nothing of this turn was stored; your message is in the field.");
  return false;
}

/** Posts until the server has said something: the same key again is the same choice. */
async function post(to, body) {
  sending = true;
  showState("saving", "saving");
  for (let failures = 0; ; failures++) {
    try {
      const answer = await fetch(`${room.dataset.base}/chat/${to}`, {
        method: "POST",
        body: new URLSearchParams(body),
        redirect: "follow",
        headers: { "HX-Request": "true" },
        signal: AbortSignal.timeout(20000),
      });
      if (answer.status !== 429 && answer.status < 500) {
        const text = await answer.text();
        sending = false;
        if (answer.status === 401) signedOut();
        else showState("saved", "all saved");
        return { ok: answer.ok, text, where: answer.headers.get("HX-Redirect") };
      }
    } catch {
      // No line: the choice waits and is sent again.
    }
    showState("waiting", navigator.onLine ? "waiting for the line" : "offline, your choice waits");
    await new Promise((resolve) => setTimeout(resolve, LATER[Math.min(failures, LATER.length - 1)]));
  }
}

async function decide(to, body, said) {
  if (sending) return;
  note.hidden = true;
  const answer = await post(to, body);
  if (answer.where) return location.assign(answer.where);
  if (answer.ok) {
    take(answer.text);
    announce.textContent = `${said} ${chat().querySelector(".hint")?.textContent.replace(/\s+/g, " ").trim() ?? ""}`;
  } else say(answer.text);
  settle(answer.ok);
}

function choose(verdict, strength) {
  const { state: wants, comparison, order } = chat().dataset;
  if (wants !== "choose" || writing || clock.tooSoon()) return;
  const body = {
    comparison_id: comparison,
    key: newKey(),
    verdict,
    order,
    guideline_version: room.dataset.guidelines,
    ...clock.times(),
  };
  if (strength) body.strength = strength;
  decide("picks", body, SAID[verdict]);
}

/** What was really written, where it looks different; another module knows how. */
async function showRaw() {
  const { toggleRaw } = await import("../text.js").catch(() => ({}));
  toggleRaw?.();
}

function act(name) {
  const { comparison, chat: id, undo } = chat().dataset;
  if (name === "stop") writing?.abort();
  else if (name === "skip" && comparison && !writing) decide("skip", { comparison_id: comparison }, "Skipped.");
  else if (name === "undo" && undo && !writing) decide("undo", {}, "Taken back.");
  else if (name === "end" && id && !writing) decide("end", { chat_id: id }, "");
  else if (name === "raw") showRaw();
  else if (name === "history") location.assign(`${room.dataset.base}/history`);
  else if (name === "guidelines" || name === "keys") document.getElementById(name).showModal();
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  if (event.key === "Escape") {
    if (writing) act("stop");
    else if (event.target === field && !event.isComposing) room.focus({ preventScroll: true });
    return;
  }
  if (event.target === field) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
    return;
  }
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const degree = bar.querySelectorAll("[data-strength]")[Number(key) - 1];
  if (!degree && !(key in KEYS) && !(key in ACTS)) return;
  event.preventDefault();
  clock.decided();
  if (degree) choose(degree.value, degree.dataset.strength);
  else if (key in ACTS) act(ACTS[key]);
  else if (key.startsWith("Arrow") || bar.querySelector(`[value="${KEYS[key]}"]`)) choose(KEYS[key]);
});

compose.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
bar.addEventListener("submit", (event) => event.preventDefault());
document.querySelector(".bar").addEventListener("click", (event) => {
  const button = event.target.closest("button, a");
  if (!button || (!button.dataset.act && button.name !== "verdict")) return;
  event.preventDefault();
  if (event.detail > 1) return; // The second half of a double click is not a second choice.
  clock.decided();
  if (button.name === "verdict") choose(button.value, button.dataset.strength);
  else act(button.dataset.act);
});
bar.addEventListener("pointermove", () => bar.classList.remove("still"));
field.addEventListener("input", keepDraft);

try {
  field.value ||= localStorage.getItem(DRAFT) ?? "";
} catch {
  // No storage in this browser.
}
settle();
look();
