// What is typed or ordered and not yet submitted goes to the server after a pause, and when the page is left.

const PAUSE_MS = 800;

export class Drafts {
  constructor(base) {
    this.base = base;
    this.timer = 0;
    this.due = null; // {id, body()} that the server does not have yet
    addEventListener("pagehide", () => this.now());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "hidden") this.now();
    });
  }

  /** Something of this comparison has changed; `body` gives what there is when the time comes. */
  soon(id, body) {
    if (this.due && this.due.id !== id) this.now();
    this.due = { id, body };
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.now(), PAUSE_MS);
  }

  now() {
    clearTimeout(this.timer);
    if (!this.due) return;
    const { id, body } = this.due;
    this.due = null;
    this.send(id, body());
  }

  /** Without a line the page still has it; the next change tries again. */
  send(id, draft) {
    const body = new URLSearchParams({ body: JSON.stringify(draft) });
    // A request that outlives its page may carry 64 kB in all; a longer text is sent while the page lives.
    const keepalive = body.toString().length < 60000;
    fetch(`${this.base}/drafts/${id}`, { method: "POST", body, keepalive }).catch(() => {});
  }

  /** The judgment takes it along. */
  forget(id) {
    if (this.due?.id !== id) return;
    clearTimeout(this.timer);
    this.due = null;
  }
}
