// Judgments that the server has not yet acknowledged. They wait in this browser, survive a closed tab, and are sent in
// order: under one lock for all tabs, each with its own key, so that sending twice is the same as sending once.

const LATER = [1000, 2000, 4000, 8000, 15000];

export class Queue {
  /** `name` keeps people and projects apart in one browser; `on` hears "state", "answer" and "refused". */
  constructor(name, base, on) {
    this.name = `pairwright.${name}`;
    this.base = base;
    this.on = on;
    this.memory = [];
    this.failures = 0;
    this.timer = 0;
    this.running = null;
    window.addEventListener("online", () => this.send());
  }

  items() {
    try {
      return JSON.parse(localStorage.getItem(this.name)) ?? [];
    } catch {
      return this.memory;
    }
  }

  keep(items) {
    this.memory = items;
    try {
      localStorage.setItem(this.name, JSON.stringify(items));
    } catch {
      // No storage in this browser: the queue lives as long as the page.
    }
  }

  add(item) {
    this.keep([...this.items(), item]);
    return this.send();
  }

  remove(key) {
    this.keep(this.items().filter((item) => item.key !== key));
  }

  /** Takes back the newest item that was not sent, if there is one. */
  pop() {
    const items = this.items();
    const last = items.pop();
    if (last) this.keep(items);
    this.say();
    return last;
  }

  say(word) {
    const waiting = this.items().length;
    this.on.state(word ?? (waiting ? "saving" : "saved"), waiting);
  }

  /** Sends what waits, oldest first; resolves when nothing is left or the line is down. */
  send() {
    this.running ??= this.locked(() => this.drain()).finally(() => {
      this.running = null;
    });
    return this.running;
  }

  locked(work) {
    return navigator.locks ? navigator.locks.request(this.name, work) : work();
  }

  async drain() {
    clearTimeout(this.timer);
    for (let item = this.items()[0]; item; item = this.items()[0]) {
      this.say("saving");
      const answer = await this.post(item.to, item.body);
      if (!answer || answer.status === 429 || answer.status >= 500) {
        this.say("waiting");
        const wait = LATER[Math.min(this.failures++, LATER.length - 1)];
        this.timer = setTimeout(() => this.send(), wait);
        return;
      }
      this.failures = 0;
      if (answer.status === 401) {
        this.say("signed-out");
        return;
      }
      this.remove(item.key);
      if (answer.ok) this.on.answer(answer.text, item);
      else this.on.refused(answer.text, item, answer.status);
    }
    this.say();
  }

  /** The answer as {status, ok, text}, or null without a line. `held` tells the server what the page has already. */
  async post(to, body) {
    const held = this.on.held().filter((id) => id !== body.comparison_id);
    const form = new URLSearchParams({ ...body, held: held.join(",") });
    try {
      const answer = await fetch(`${this.base}/${to}`, {
        method: "POST",
        body: form,
        redirect: "error",
        signal: AbortSignal.timeout(20000),
      });
      return { status: answer.status, ok: answer.ok, text: await answer.text() };
    } catch {
      return null;
    }
  }
}
