// Writing an ideal answer. The text is a draft on the server while it is typed, and waits in this browser once it is
// submitted, until the server has it.

import * as clock from "../judge/clock.js";
import { newKey } from "../judge/key.js";
import { Queue } from "../judge/queue.js";
import { Draft } from "./draft.js";

const main = document.querySelector("[data-writer]");
const note = document.getElementById("note");
const announce = document.getElementById("announce");
const state = document.getElementById("state");
const submitButton = document.getElementById("submit");
const skipDialog = document.getElementById("skip");

const ACTS = { s: "skip", u: "undo", g: "guidelines", h: "history", "?": "keys", e: "better" };
const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const words = "Segmenter" in Intl ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

let article = document.getElementById("writing");
let before = null; // the text that the better answer took the place of
let sending = false;
let told = false; // whether "draft saved" was said aloud for this prompt
let counting = 0;
let unsaved = false; // a draft that only this browser has

const draft = new Draft(main.dataset.base, main.dataset.owner, showDraft);
const queue = new Queue(`write.${main.dataset.owner}.${main.dataset.base}`, main.dataset.base, {
  state: showState,
  answer: (html, item) => take(html, item),
  refused: (html, item) => refuse(html, item),
  held: () => [],
});

const field = () => article.querySelector("#answer");
const hidden = (name) => article.querySelector(`#answer-form [name="${name}"]`);

function typed() {
  return { text: field().value, edited_from_id: hidden("edited_from_id").value, base: article.dataset.revises };
}

/** Follows the prompt in the page: its draft, its length, its time. */
function begin(focus) {
  before = null;
  sending = false;
  told = false;
  unsaved = false;
  clock.restart();
  const text = field();
  submitButton.disabled = !text;
  document.querySelector('[data-act="skip"]').hidden = !text || Boolean(article.dataset.revises);
  if (!text) return;
  skipDialog.querySelector('[name="prompt_id"]').value = article.dataset.prompt;
  const kept = draft.follow(article.dataset.prompt, typed);
  if (kept && kept.base === article.dataset.revises && kept.text) {
    put(kept.text, kept.edited_from_id);
    draft.save();
  }
  measure();
  if (focus) rest(text);
}

/** Into the field where a keyboard is at hand and the question stays in sight; else to the page, which scrolls. */
function rest(text) {
  const seen = text.getBoundingClientRect().top < main.getBoundingClientRect().bottom - 120;
  if (seen && matchMedia("(pointer: fine)").matches) text.focus({ preventScroll: true });
  else article.focus({ preventScroll: true });
}

function put(text, began) {
  field().value = text;
  hidden("edited_from_id").value = began ?? "";
  article.querySelector(".began").hidden = !began;
  measure();
}

function measure() {
  const text = field();
  if (!CSS.supports("field-sizing", "content")) {
    text.style.height = "auto";
    text.style.height = `${text.scrollHeight + 2}px`;
  }
  clearTimeout(counting);
  counting = setTimeout(count, 120);
}

function count() {
  const text = field()?.value;
  if (text === undefined) return;
  const longest = Number(article.dataset.longest);
  let number = 0;
  if (words) for (const part of words.segment(text)) number += part.isWordLike ? 1 : 0;
  else number = text.split(/\s+/).filter(Boolean).length;
  const size = [...text].length;
  const length = document.getElementById("length");
  length.classList.toggle("over", size > longest);
  length.textContent = `${number.toLocaleString("en")} ${number === 1 ? "word" : "words"}`;
  if (size > longest) length.textContent += `, ${(size - longest).toLocaleString("en")} characters too many`;
  else if (size > longest * 0.8) length.textContent += `, ${(longest - size).toLocaleString("en")} characters left`;
}

function showDraft(word) {
  if (word === "signed-out") return showState(word, queue.items().length);
  unsaved = word === "waiting";
  state.dataset.state = word === "typing" ? "saving" : word;
  const offline = navigator.onLine ? "no line" : "offline";
  state.textContent = { typing: "saving", saved: "draft saved", waiting: `${offline}, draft kept here` }[word];
  if (word === "saved" && !told) {
    told = true;
    announce.textContent = "Draft saved.";
  }
}

function showState(word, waiting) {
  if (word === "saved" && unsaved) return showDraft("waiting");
  state.dataset.state = word === "signed-out" ? "stopped" : word;
  if (word === "waiting") {
    state.textContent = `${navigator.onLine ? "waiting for the line" : "offline"}, ${waiting} waiting`;
    if (sending) say("What you wrote waits in this browser and goes by itself when the line is back.", "fine");
  } else if (word === "signed-out") {
    const link = document.createElement("a");
    link.href = `/sign-in?next=${encodeURIComponent(location.pathname)}`;
    link.textContent = waiting ? `signed out: sign in again, ${waiting} waiting` : "signed out: sign in again";
    state.replaceChildren(link);
  } else {
    state.textContent = word === "saving" ? "saving" : "all saved";
  }
}

/** Says something where the person is looking; it leaves with the next thing they do. */
function say(content, tone = "") {
  const shown = typeof content === "string" ? document.createElement("div") : content;
  if (typeof content === "string") {
    shown.className = `notice ${tone}`;
    const line = document.createElement("p");
    line.textContent = content;
    shown.append(line);
  }
  if (note.textContent === shown.textContent && !note.hidden) return;
  note.replaceChildren(shown);
  note.hidden = false;
}

/** Brings the next prompt into the page. */
function take(html, item) {
  const page = new DOMParser().parseFromString(html, "text/html");
  const onward = page.getElementById("next")?.dataset.onward;
  if (onward) return location.assign(onward);
  for (const id of ["tally", "undo"]) {
    const fresh = page.getElementById(id);
    if (fresh) document.getElementById(id).replaceWith(fresh);
  }
  const next = page.getElementById("writing");
  // What waited from before says nothing about the prompt in the page.
  if (!next || !sending || item.body.prompt_id !== article.dataset.prompt) return;
  note.hidden = true;
  article.replaceWith(next);
  article = next;
  article.classList.add("arrives");
  if (location.search) history.replaceState(null, "", location.pathname);
  main.scrollTop = 0;
  begin(true);
  const asked = article.querySelector("#asked")?.textContent ?? article.textContent;
  announce.textContent = `Saved. ${asked.replace(/\s+/g, " ").trim().slice(0, 200)}`;
}

/** The server did not take it: the text is back in the field, or beside the message where another prompt is shown. */
function refuse(html, item) {
  const message = new DOMParser().parseFromString(html, "text/html").querySelector(".notice");
  const shown = message ?? document.createElement("div");
  if (!message) {
    shown.className = "notice";
    shown.textContent = "The server did not take this; nothing was lost.";
  }
  shown.removeAttribute("role");
  if (item.body.text !== undefined && item.body.prompt_id === article.dataset.prompt) {
    field().readOnly = false;
    sending = false;
    submitButton.disabled = false;
    put(item.body.text, item.body.edited_from_id);
    draft.follow(item.body.prompt_id, typed);
    draft.last = "";
    draft.save();
    field().focus();
  } else if (item.body.text !== undefined) {
    const details = document.createElement("details");
    const summary = document.createElement("summary");
    const text = document.createElement("div");
    summary.textContent = "Your text";
    text.className = "text";
    text.textContent = item.body.text;
    details.append(summary, text);
    shown.append(details);
  } else {
    sending = false;
  }
  say(shown);
}

function submit() {
  const text = field();
  if (!text || sending) return;
  const longest = Number(article.dataset.longest);
  const over = [...text.value].length - longest;
  const wrong = !text.value.trim()
    ? "There is no text yet. Write the answer, then submit it."
    : over > 0
      ? `The text is longer than ${longest.toLocaleString("en")} characters. Shorten it by ${over.toLocaleString("en")}.`
      : "";
  if (wrong) {
    say(wrong);
    text.focus();
    return;
  }
  note.hidden = true;
  const key = newKey();
  const body = {
    prompt_id: article.dataset.prompt,
    key,
    text: text.value,
    edited_from_id: hidden("edited_from_id").value,
    guideline_version: hidden("guideline_version").value,
    active_ms: clock.times().active_ms,
  };
  hold();
  queue.add({ key, to: "write", body });
}

/** The text is on its way: it can be read, not changed, and is no draft any more. */
function hold() {
  sending = true;
  unsaved = false;
  submitButton.disabled = true;
  if (field()) field().readOnly = true;
  draft.stop();
}

function skip(reason) {
  const key = newKey();
  const body = { prompt_id: article.dataset.prompt, reason };
  hold();
  queue.add({ key, to: "write/skip", body });
}

/** What was not sent yet comes back as it was; else the last demonstration opens again. */
async function undo() {
  if (sending) {
    if (queue.running) await queue.running;
    const waiting = queue.pop();
    if (waiting?.body.prompt_id === article.dataset.prompt) {
      note.hidden = true;
      field().readOnly = false;
      const text = waiting.body.text ?? field().value;
      begin(false);
      put(text, waiting.body.edited_from_id ?? hidden("edited_from_id").value);
      draft.last = ""; // What was to be sent is on no server.
      draft.touch();
      field().focus();
    }
    return;
  }
  const link = document.querySelector('#undo [data-act="undo"]');
  if (link) location.assign(link.href);
  else say("There is nothing to undo yet.");
}

/** Puts the better answer into the field, and takes it out again on a second press. */
function start() {
  const better = article.querySelector("#better-source");
  if (!better || sending) return;
  if (before) {
    put(before.text, before.began);
    before = null;
    label("Edit this one");
    say("Your own text is back.", "fine");
  } else {
    before = { text: field().value, began: hidden("edited_from_id").value };
    put(better.value, better.dataset.id);
    if (before.text.trim()) label("Put my text back");
    else before = null;
    article.querySelector("#better").open = Boolean(before);
    note.hidden = true;
  }
  draft.touch();
  field().focus();
  field().setSelectionRange(0, 0);
}

function label(words) {
  article.querySelector('[data-act="start"]').textContent = words;
}

function act(name) {
  if (name === "undo") undo();
  else if (name === "history") location.assign(`${main.dataset.base}/history`);
  else if (name === "start") start();
  else if (name === "better") {
    const better = article.querySelector("#better");
    if (!better) return;
    if (!better.open) {
      better.open = true;
      better.querySelector("summary").focus({ preventScroll: true });
      better.scrollIntoView({ block: "nearest" });
    } else start();
  } else if (name === "skip") {
    if (field() && !sending && !article.dataset.revises) skipDialog.showModal();
  } else document.getElementById(name).showModal();
}

document.addEventListener("keydown", (event) => {
  clock.touched();
  const dialog = document.querySelector("dialog[open]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !dialog && !event.isComposing) {
    event.preventDefault();
    if (!event.repeat) submit();
    return;
  }
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || dialog) return;
  const inside = event.target.closest("input, textarea, select");
  if (inside) {
    if (event.key === "Escape") {
      event.preventDefault();
      article.focus({ preventScroll: true });
    }
    return;
  }
  if (event.key === "Enter" && !event.target.closest("a, button, summary") && field()) {
    event.preventDefault();
    field().focus();
    return;
  }
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!(key in ACTS)) return;
  event.preventDefault();
  act(ACTS[key]);
});

document.addEventListener("input", (event) => {
  if (event.target !== field()) return;
  note.hidden = true;
  measure();
  draft.touch();
});

document.addEventListener("submit", (event) => {
  if (event.target.id === "answer-form") {
    event.preventDefault();
    submit();
  } else if (event.target.id === "skip-form") {
    event.preventDefault();
    skipDialog.close();
    skip(new FormData(event.target).get("reason"));
  }
});

document.addEventListener("click", (event) => {
  const closes = event.target.closest("[data-close]");
  const acts = event.target.closest("[data-act]");
  if (!closes && !acts) return;
  if (event.ctrlKey || event.metaKey || event.shiftKey) return; // Into another tab.
  event.preventDefault();
  if (closes) closes.closest("dialog").close();
  else act(acts.dataset.act);
});


if (MAC) for (const key of document.querySelectorAll(".combo")) key.textContent = "⌘ Enter";
const [first] = queue.items();
begin(!first);
if (first) {
  // What was submitted before this page was opened goes first; the prompt that is shown may be the very same.
  if (first.body.prompt_id === article.dataset.prompt && field()) {
    if (first.body.text !== undefined) put(first.body.text, first.body.edited_from_id);
    hold();
  }
  queue.send();
}
