// What is being typed, kept on the server while it is typed. Without a line it waits in this browser instead.

const PAUSE_MS = 800;

export class Draft {
  /** `name` keeps people and prompts apart in one browser; `said` hears "typing", "saved" and "waiting". */
  constructor(base, owner, said) {
    this.base = base;
    this.owner = owner;
    this.said = said;
    this.task = null;
    this.read = () => null;
    this.last = "";
    this.timer = 0;
    window.addEventListener("pagehide", () => this.flush());
    window.addEventListener("online", () => this.save());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.flush();
    });
  }

  /** Follows another prompt. `read` gives what is in its field; what this browser kept of it without a line is returned. */
  follow(task, read) {
    clearTimeout(this.timer);
    this.task = task;
    this.read = read;
    this.last = JSON.stringify(read());
    return this.kept();
  }

  name() {
    return `pairwright.draft.${this.owner}.${this.task}`;
  }

  kept() {
    try {
      return JSON.parse(localStorage.getItem(this.name()));
    } catch {
      return null;
    }
  }

  /** Something was typed. */
  touch() {
    if (!this.task) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.save(), PAUSE_MS);
  }

  async save() {
    clearTimeout(this.timer);
    const body = this.task && JSON.stringify(this.read());
    if (!body || body === this.last) return;
    const { task } = this;
    this.said("typing");
    const answer = await this.send(task, body, false);
    if (task !== this.task) return; // Submitted meanwhile.
    if (answer?.ok) {
      this.last = body;
      this.forget();
      this.said("saved");
    } else {
      this.keep(body);
      this.said(answer?.status === 401 ? "signed-out" : "waiting");
      this.timer = setTimeout(() => this.save(), 5000);
    }
  }

  /** The page goes away: nothing can be waited for. */
  flush() {
    clearTimeout(this.timer);
    const body = this.task && JSON.stringify(this.read());
    if (!body || body === this.last) return;
    this.keep(body);
    this.send(this.task, body, true).then((answer) => {
      if (!answer?.ok) return;
      this.last = body;
      this.forget();
    });
  }

  async send(task, body, keepalive) {
    const form = new FormData();
    form.set("body", body);
    try {
      return await fetch(`${this.base}/drafts/${task}`, { method: "POST", body: form, keepalive, redirect: "error" });
    } catch {
      return null;
    }
  }

  keep(body) {
    try {
      localStorage.setItem(this.name(), body);
    } catch {
      // No storage in this browser: the text is still in the page.
    }
  }

  forget() {
    try {
      localStorage.removeItem(this.name());
    } catch {
      // Nothing was kept.
    }
  }

  /** The text was submitted, or given up: nothing of it is a draft any more. */
  stop() {
    clearTimeout(this.timer);
    if (this.task) this.forget();
    this.task = null;
  }
}
