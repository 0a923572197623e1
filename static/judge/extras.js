// What may be said beside a judgment: flags, ratings, a reason, a better answer. A panel above the bar, opened by a key,
// closed by Escape. What is typed belongs to the comparison on show, and is kept for undo.

const KEPT = 24;

export const sides = (count) =>
  count === 2 ? ["Left", "Right"] : Array.from({ length: count }, (_, i) => `Answer ${i + 1}`);

export class Extras {
  /** `on` hears "changed", and "home" says where the focus goes when nothing else had it. */
  constructor(panel, acts, on) {
    this.panel = panel;
    this.acts = acts;
    this.on = on;
    this.kept = new Map(); // comparison id -> what was said
    this.task = null;
    this.opener = null;
    panel.addEventListener("input", (event) => this.heard(event.target));
    panel.addEventListener("change", (event) => this.heard(event.target));
    panel.addEventListener("keydown", (event) => this.key(event));
    panel.addEventListener("click", (event) => {
      if (event.target.closest("[data-close]")) this.close();
      const start = event.target.closest("[data-start]");
      if (start) this.begin(start.dataset.start);
    });
  }

  /** The comparison on show; what was said of it before, here or in a draft, comes back. */
  show(task) {
    this.close(false);
    this.task = task;
    if (!task) return this.tell();
    const id = task.dataset.comparison;
    if (!this.kept.has(id)) this.keep(id, JSON.parse(task.dataset.draft ?? "{}"));
    this.tell();
  }

  keep(id, said) {
    const { flags, ratings, rationale, ideal, edited_from } = said;
    this.kept.set(id, {
      flags: { ...flags },
      ratings: { ...ratings },
      rationale: String(rationale ?? ""),
      ideal: String(ideal ?? ""),
      edited_from: edited_from ?? null,
    });
    if (this.kept.size > KEPT) this.kept.delete(this.kept.keys().next().value);
  }

  get said() {
    return this.kept.get(this.task?.dataset.comparison);
  }

  get order() {
    return this.task.dataset.order.split(",");
  }

  /** The text of an answer as it was written, by canonical position. */
  original(position) {
    const found = this.task.querySelectorAll("[data-original]")[this.order.indexOf(String(position))];
    return found?.content.textContent ?? "";
  }

  /** Whether the better answer says anything that the one it began as does not. */
  improved() {
    const { ideal, edited_from } = this.said;
    return ideal.trim() !== "" && (edited_from === null || ideal.trim() !== this.original(edited_from).trim());
  }

  /** The fields of the submit; what is empty is left out. */
  body() {
    const { flags, ratings, rationale, ideal, edited_from } = this.said;
    const body = {};
    const flagged = Object.fromEntries(Object.entries(flags).filter(([, given]) => given.length));
    if (Object.keys(flagged).length) body.flags = JSON.stringify(flagged);
    if (Object.keys(ratings).length) body.ratings = JSON.stringify(ratings);
    if (rationale.trim()) body.rationale = rationale;
    if (this.improved()) {
      body.ideal = ideal;
      if (edited_from !== null) body.edited_from = edited_from;
    }
    return body;
  }

  /** The id of the first field that is longer than the server takes, or null. */
  tooLong() {
    for (const field of this.panel.querySelectorAll("[data-most]")) {
      if ([...this.said[field.id]].length > Number(field.dataset.most)) return field;
    }
    return null;
  }

  /** Marks in the bar what has been said, in words as well. */
  tell() {
    for (const button of this.acts.querySelectorAll("[data-says]")) {
      button.disabled = !this.task;
      const said = this.said && this.filled(button.dataset.says);
      button.toggleAttribute("data-filled", Boolean(said));
      button.setAttribute("aria-description", said ? "filled in" : "");
    }
  }

  filled(what) {
    const { flags, ratings, rationale } = this.said;
    if (what === "ideal") return this.improved();
    if (what === "rationale") return rationale.trim() !== "";
    return Object.keys(ratings).length > 0 || Object.values(flags).some((given) => given.length);
  }

  has(part) {
    return Boolean(this.panel.querySelector(`[data-part="${part}"]`));
  }

  /** `best` is the answer, by canonical position, that a better one begins with, where one is known. */
  open(part, best = null) {
    if (!this.task || !this.has(part)) return;
    if (this.panel.hidden) this.opener = document.activeElement;
    this.panel.hidden = false;
    for (const one of this.panel.querySelectorAll("[data-part]")) one.hidden = one.dataset.part !== part;
    for (const one of this.acts.querySelectorAll("[data-says]")) {
      one.setAttribute("aria-expanded", String(one.dataset.act === part));
    }
    if (part === "flag") this.fillRows();
    else if (part === "why") this.fill("rationale");
    else this.fillIdeal(best);
  }

  close(back = true) {
    if (this.panel.hidden) return;
    this.panel.hidden = true;
    for (const one of this.acts.querySelectorAll("[data-says]")) one.setAttribute("aria-expanded", "false");
    if (back) (this.opener?.isConnected && this.opener !== document.body ? this.opener : this.on.home()).focus();
    this.opener = null;
  }

  fill(id) {
    const field = document.getElementById(id);
    field.value = this.said[id];
    this.count(field);
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  fillIdeal(best) {
    const starts = this.panel.querySelector("[data-starts]");
    const words = sides(this.order.length);
    starts.replaceChildren(
      ...words.map((word, i) => this.start(word, this.order[i], words.length === 2 ? ["←", "→"][i] : "")),
      this.start("Nothing", "", ""),
    );
    if (best !== null && !this.said.ideal.trim()) this.begin(String(best));
    else this.fill("ideal");
    this.mark();
  }

  start(word, position, key) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "quiet";
    button.dataset.start = position;
    if (key) {
      const cap = document.createElement("kbd");
      cap.textContent = key;
      button.append(cap, " ");
    }
    button.append(word);
    return button;
  }

  /** Shows which answer the better one began with. */
  mark() {
    for (const one of this.panel.querySelectorAll("[data-start]")) {
      one.setAttribute("aria-pressed", String(one.dataset.start === String(this.said.edited_from ?? "")));
    }
  }

  /** Puts an answer's text, or nothing, where the better one is written. What was typed is not overwritten unasked. */
  begin(position) {
    const typed = this.improved();
    if (typed && !window.confirm("Replace what you have written?")) return document.getElementById("ideal").focus();
    this.said.edited_from = position === "" ? null : Number(position);
    this.said.ideal = position === "" ? "" : this.original(position);
    this.fill("ideal");
    this.mark();
    this.changed();
  }

  heard(field) {
    if (!this.said) return;
    if (field.id === "rationale" || field.id === "ideal") {
      if (this.said[field.id] === field.value) return;
      this.said[field.id] = field.value;
      this.count(field);
    } else if (field.type === "radio") {
      this.said.ratings[field.closest(".row").dataset.position] = Number(field.value);
    } else if (field.type === "checkbox") {
      const row = field.closest(".row");
      this.said.flags[row.dataset.position] = [...row.querySelectorAll(":checked[type=checkbox]")].map((one) => one.value);
    }
    this.changed();
  }

  changed() {
    this.tell();
    this.on.changed();
  }

  count(field) {
    const [length, most] = [[...field.value].length, Number(field.dataset.most)];
    const place = this.panel.querySelector(`[data-count-of="${field.id}"]`);
    place.textContent = length > most * 0.8 ? `${length} of ${most} characters` : "";
    place.classList.toggle("error", length > most);
  }

  fillRows() {
    const part = this.panel.querySelector('[data-part="flag"]');
    const row = part.querySelector("template").content.firstElementChild;
    const rows = sides(this.order.length).map((word, i) => {
      const made = row.cloneNode(true);
      const position = this.order[i];
      made.dataset.position = position;
      made.querySelector("legend").textContent = word;
      for (const one of made.querySelectorAll("input")) {
        if (one.type === "radio") {
          one.name = `rating-${position}`;
          one.checked = this.said.ratings[position] === Number(one.value);
        } else one.checked = Boolean(this.said.flags[position]?.includes(one.value));
      }
      return made;
    });
    part.querySelector(".rows").replaceChildren(...rows);
    rows[0].querySelector("input").focus();
  }

  /** Keys inside the panel. Escape leaves it from anywhere, so does Enter with Control from a text. */
  key(event) {
    const { target } = event;
    if (event.key === "Escape" || (event.key === "Enter" && (event.ctrlKey || event.metaKey))) {
      event.preventDefault();
      event.stopPropagation();
      this.close();
    } else if (target.id === "ideal" && target.value === "" && ["ArrowLeft", "ArrowRight"].includes(event.key)) {
      if (this.order.length !== 2) return;
      event.preventDefault();
      this.begin(this.order[event.key === "ArrowLeft" ? 0 : 1]);
    } else if (target.closest(".row")) this.keyInRow(event);
  }

  /** Up and down go from answer to answer; digits rate, letters flag. */
  keyInRow(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const row = event.target.closest(".row");
    const key = event.key.toLowerCase();
    const step = { arrowup: -1, arrowdown: 1 }[key];
    const near = step === -1 ? row.previousElementSibling : row.nextElementSibling;
    const input = row.querySelector(`[data-key="${CSS.escape(key)}"], [type="radio"][value="${CSS.escape(key)}"]`);
    if (step) {
      event.preventDefault();
      near?.querySelector("input").focus();
    } else if (input) {
      event.preventDefault();
      input.focus();
      input.click();
    }
  }
}
