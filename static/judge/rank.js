// An order of several answers, best first. The answers stay where they are read; their numbers are put in order in a
// strip: by typing them from best to worst, by arrows, by drag. It knows no comparison, only numbers.

const ordinal = (n) => `${n}${["th", "st", "nd", "rd"][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? "th"}`;

export class Ranking {
  /** `on` hears "moved" after each change and "said" without one, with what to say of it. */
  constructor(strip, on) {
    this.strip = strip;
    this.on = on;
    this.list = strip.querySelector(".chips");
    this.ties = strip.dataset.ties === "yes";
    this.list.addEventListener("pointerdown", (event) => this.grab(event));
    this.list.addEventListener("click", (event) => {
      const chip = event.target.closest(".chip");
      if (chip) chip.focus();
    });
  }

  /** `tiers` are numbers as served, best first, or null for an order that nobody has touched; `typed` of them were placed. */
  show(task, tiers = null, typed = 0) {
    this.task = task;
    this.count = Number(task.dataset.count);
    this.touched = tiers !== null;
    this.typed = tiers ? typed : 0; // how many stand first because they were typed
    this.asked = false;
    this.row = tiers ? tiers.flat() : Array.from({ length: this.count }, (_, i) => i);
    this.tied = new Set(tiers ? tiers.flatMap((tier) => tier.slice(1)) : []); // as good as the one before it
    this.strip.querySelector("[data-last]").textContent = this.count;
    this.list.replaceChildren(...this.row.map((i) => this.chip(i)));
    this.draw();
  }

  chip(i) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "chip";
    button.dataset.answer = i;
    button.textContent = i + 1;
    item.append(button);
    return item;
  }

  chipOf(i) {
    return this.list.querySelector(`[data-answer="${i}"]`);
  }

  /** Sorted tiers of numbers as served. */
  tiers() {
    const tiers = [];
    for (const [at, i] of this.row.entries()) {
      if (at && this.tied.has(i)) tiers.at(-1).push(i);
      else tiers.push([i]);
    }
    return tiers;
  }

  draw() {
    this.tied.delete(this.row[0]);
    const current = this.list.contains(document.activeElement) ? document.activeElement : null;
    const [places, tiers] = [new Map(), this.tiers()];
    let place = 1;
    for (const tier of tiers) {
      for (const i of tier) places.set(i, { place, shared: tier.length > 1 });
      place += tier.length;
    }
    for (const [at, i] of this.row.entries()) {
      const item = this.chipOf(i).parentElement;
      if (this.list.children[at] !== item) this.list.insertBefore(item, this.list.children[at] ?? null);
      const { place: n, shared } = places.get(i);
      const chip = item.firstElementChild;
      item.classList.toggle("tied", this.tied.has(i));
      item.classList.toggle("waits", this.typed > 0 && at >= this.typed);
      chip.setAttribute("aria-label", `Answer ${i + 1}, ${ordinal(n)}${shared ? ", tied" : ""}`);
      chip.tabIndex = chip === (current ?? this.chipOf(this.row[0])) ? 0 : -1;
      const note = this.task.querySelectorAll("[data-rank]")[i];
      const stands = this.touched && !(this.typed > 0 && at >= this.typed);
      note.textContent = stands ? `${shared ? "= " : ""}${ordinal(n)}` : "";
    }
    current?.focus({ preventScroll: true }); // moving a node takes the focus away
  }

  /** Says and tells what changed about one answer, and puts the focus on it. */
  moved(i) {
    this.touched = true;
    this.asked = false;
    this.draw();
    const chip = this.chipOf(i);
    chip.focus({ preventScroll: true });
    for (const one of this.list.querySelectorAll(".chip")) one.tabIndex = one === chip ? 0 : -1;
    const left = this.typed && this.typed < this.count ? ` ${this.count - this.typed} to go.` : "";
    this.on.moved(`${chip.getAttribute("aria-label")}.${left}`);
  }

  /** The answer with this number is next in the order that is being typed; one that stands already is chosen. */
  type(i) {
    if (i >= this.count) return;
    const at = this.row.indexOf(i);
    if (at < this.typed || (this.touched && !this.typed)) {
      this.chipOf(i).focus();
      this.draw();
      return this.on.said(`${this.chipOf(i).getAttribute("aria-label")}, chosen.`);
    }
    if (!this.typed) this.tied.clear();
    this.row.splice(at, 1);
    this.row.splice(this.typed++, 0, i);
    if (this.typed === this.count - 1) this.typed = this.count; // the last one has no other place
    this.moved(i);
  }

  chosen() {
    const chip = document.activeElement?.closest?.(".chip");
    return this.list.contains(chip) ? Number(chip.dataset.answer) : null;
  }

  /** One place better (-1) or worse (1). Whatever was typed so far stands. */
  step(by) {
    const i = this.chosen();
    if (i === null) return this.chipOf(this.row[0]).focus();
    const at = this.row.indexOf(i);
    if (this.row[at + by] === undefined) return this.on.said(`${this.chipOf(i).getAttribute("aria-label")}.`);
    this.tied.delete(i);
    this.row.splice(at, 1);
    this.row.splice(at + by, 0, i);
    this.typed = 0;
    this.moved(i);
  }

  /** As good as the one before it; again takes that back. */
  tie() {
    const i = this.chosen();
    if (i === null || !this.ties) return;
    if (this.row[0] === i) return this.on.said("Nothing stands before it.");
    if (!this.tied.delete(i)) this.tied.add(i);
    this.moved(i);
  }

  /** Whether the key was one of these. */
  key(key) {
    if (/^[1-9]$/.test(key)) this.type(Number(key) - 1);
    else if (key === "ArrowUp") this.step(-1);
    else if (key === "ArrowDown") this.step(1);
    else if (key === "=") this.tie();
    else return false;
    return true;
  }

  /** What to ask before this order is taken, once; empty when it is clear. */
  question() {
    if (this.asked) return "";
    this.asked = true;
    if (!this.touched) return "You have not changed the order. Press Enter again to take it as it stands.";
    const open = this.typed ? this.row.slice(this.typed).map((i) => i + 1) : [];
    if (open.length) return `You have not placed ${open.join(", ")}. Press Enter again to leave them as they stand.`;
    return "";
  }

  /** Drags a chip along the strip; the others make room while it moves. */
  grab(event) {
    const chip = event.target.closest(".chip");
    if (!chip || event.button !== 0) return;
    const i = Number(chip.dataset.answer);
    const before = this.row.join();
    let dragging = false;
    const drag = (move) => {
      if (!dragging && Math.hypot(move.clientX - event.clientX, move.clientY - event.clientY) < 5) return;
      dragging = true;
      chip.classList.add("dragged");
      const others = this.row.filter((one) => one !== i);
      const spots = others.map((one) => this.chipOf(one).getBoundingClientRect());
      const past = ({ top, bottom, left, right }) =>
        move.clientY > bottom || (move.clientY >= top && move.clientX > (left + right) / 2);
      const at = spots.filter(past).length;
      if (this.row.indexOf(i) === at) return;
      this.row = others.toSpliced(at, 0, i);
      this.tied.delete(i);
      this.typed = 0;
      this.touched = true;
      this.draw();
    };
    const drop = () => {
      chip.classList.remove("dragged");
      removeEventListener("pointermove", drag);
      for (const kind of ["pointerup", "pointercancel"]) removeEventListener(kind, drop);
      if (dragging && this.row.join() !== before) this.moved(i);
    };
    // The window hears them: a node that moves in the page loses the pointer.
    addEventListener("pointermove", drag);
    for (const kind of ["pointerup", "pointercancel"]) addEventListener(kind, drop);
  }
}
