// Live curves by uPlot, in the page's own colours. Every figure names its metrics; what has no data yet stays folded.
(() => {
  const section = document.querySelector("[data-curves]");
  if (!section) return;
  const EVERY_MS = 2000;
  const figures = [...section.querySelectorAll("[data-metrics]")].map((node) => ({
    node,
    names: node.dataset.metrics.split(" "),
    x: [],
    ys: node.dataset.metrics.split(" ").map(() => []),
    low: number(node.dataset.low),
    high: number(node.dataset.high),
    limit: number(node.dataset.limit),
    plot: null,
  }));
  let last = 0;

  function number(text) {
    return text === undefined ? null : Number(text);
  }

  /** The axis: what the values need, and never less than the range in which they mean something. */
  function range(figure, least, most) {
    const values = [least, most, figure.low, figure.high, figure.limit].filter((value) => value !== null);
    const low = Math.min(...values);
    const high = Math.max(...values);
    const room = (high - low || Math.abs(high) || 1) * 0.06;
    return [figure.low === low ? low : low - room, figure.high === high ? high : high + room];
  }

  function data(figure) {
    const line = figure.limit === null ? [] : [figure.x.map(() => figure.limit)];
    return [figure.x, ...figure.ys, ...line];
  }

  function colour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(--${name})`;
    section.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function short(value) {
    if (value === null || value === undefined) return "–";
    return Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  }

  function draw(figure) {
    const place = figure.node.querySelector(".plot");
    figure.plot?.destroy();
    const ink = colour("muted");
    const line = { stroke: colour("hairline"), width: 1 };
    const font = "11px system-ui, sans-serif";
    const axis = { stroke: ink, grid: line, ticks: { show: false }, font, size: 26 };
    const strokes = [colour("accent"), colour("ink")];
    const series = figure.names.map((label, i) => ({
      label,
      stroke: strokes[i % strokes.length],
      width: 1.75,
      spanGaps: true,
      points: { show: figure.x.length < 2, size: 5 },
      value: (_, value) => short(value),
    }));
    if (figure.limit !== null) series.push({ stroke: colour("warning"), width: 1, dash: [4, 4], points: { show: false } });
    const options = {
      width: place.clientWidth || 320,
      height: 170,
      padding: [8, 18, 0, 0],
      legend: { show: false },
      cursor: { y: false, points: { size: 6 } },
      scales: { x: { time: false }, y: { range: (_, least, most) => range(figure, least, most) } },
      axes: [{ ...axis, space: 60 }, { ...axis, size: 46, space: 34, values: (_, ticks) => ticks.map(short) }],
      series: [{}, ...series],
      hooks: { setCursor: [(plot) => name(figure, plot.cursor.idx)] },
    };
    figure.plot = new uPlot(options, data(figure), place);
  }

  /** The value under the pointer, else the newest. */
  function name(figure, index) {
    const at = index ?? figure.x.length - 1;
    const out = figure.node.querySelector("output");
    if (at < 0) return;
    const values = figure.ys.map((ys) => short(index == null ? ys.findLast((value) => value !== null) : ys[at]));
    const told = values.filter((value) => value !== "–").join(" · ") || "–";
    out.textContent = index == null ? told : `${told} at step ${figure.x[at].toLocaleString("en")}`;
  }

  function add(figure, rows) {
    for (const { step, values } of rows) {
      if (!figure.names.some((metric) => typeof values[metric] === "number")) continue;
      // A resumed run logs some steps again: the later word counts.
      while (figure.x.length && figure.x.at(-1) > step) {
        figure.x.pop();
        for (const ys of figure.ys) ys.pop();
      }
      if (figure.x.at(-1) !== step) {
        figure.x.push(step);
        for (const ys of figure.ys) ys.push(null);
      }
      figure.names.forEach((metric, i) => {
        if (typeof values[metric] === "number") figure.ys[i][figure.x.length - 1] = values[metric];
      });
    }
  }

  async function load() {
    let answer;
    try {
      answer = await (await fetch(`${section.dataset.curves}?after=${last}`)).json();
    } catch {
      answer = null; // No line: the curves wait.
    }
    for (const row of answer?.rows ?? []) last = Math.max(last, row.id);
    for (const figure of figures) {
      const before = figure.x.length;
      add(figure, answer?.rows ?? []);
      figure.node.hidden = figure.x.length === 0 && !(answer?.live && figure === figures[0]);
      if (!figure.x.length || (before === figure.x.length && figure.plot)) continue;
      if (figure.plot && before > 1) figure.plot.setData(data(figure));
      else draw(figure);
      name(figure, null);
    }
    if ("live" in section.dataset && (answer === null || answer.live)) setTimeout(load, EVERY_MS);
  }

  function again() {
    for (const figure of figures) if (figure.plot) draw(figure);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(again, 150);
  });
  load();
})();
