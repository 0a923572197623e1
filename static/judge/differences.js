// Marks the words in which two answers differ, the same way on both sides, without changing either.

const LARGEST = 4e6; // cells of one table: two answers of two thousand words
const WORD = /[\p{L}\p{N}]/u;
const BLOCK = "p, h3, h4, h5, h6, th, td, li, pre, .raw, math";
const segmenter = "Segmenter" in Intl ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

/** Words and signs of an answer in reading order, with where they stand. */
function tokens(answer) {
  const walker = document.createTreeWalker(answer, NodeFilter.SHOW_TEXT);
  const found = [];
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.parentElement.checkVisibility()) continue;
    const block = node.parentElement.closest(BLOCK);
    for (const [text, start] of pieces(node.data)) {
      if (text.trim()) found.push({ text, node, start, end: start + text.length, block, word: WORD.test(text) });
    }
  }
  return found;
}

function* pieces(text) {
  if (segmenter) for (const { segment, index } of segmenter.segment(text)) yield [segment, index];
  else for (const match of text.matchAll(/[\p{L}\p{N}]+|[^\p{L}\p{N}\s]/gu)) yield [match[0], match.index];
}

/** Pairs [i, j] of a longest common run of a[from..to) and b[...), by table; along what occurs once where that is too large. */
function common(a, b, a0, a1, b0, b1, out) {
  while (a0 < a1 && b0 < b1 && a[a0] === b[b0]) out.push([a0++, b0++]);
  const tail = [];
  while (a0 < a1 && b0 < b1 && a[a1 - 1] === b[b1 - 1]) tail.push([--a1, --b1]);
  const n = a1 - a0;
  const m = b1 - b0;
  if (n && m && n * m <= LARGEST) byTable(a, b, a0, b0, n, m, out);
  else if (n && m) bySingles(a, b, a0, a1, b0, b1, out);
  out.push(...tail.reverse());
}

function byTable(a, b, a0, b0, n, m, out) {
  const width = m + 1;
  const best = new Uint16Array((n + 1) * width);
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      const here = i * width + j;
      best[here] = a[a0 + i] === b[b0 + j] ? best[here + width + 1] + 1 : Math.max(best[here + width], best[here + 1]);
    }
  }
  for (let i = 0, j = 0; i < n && j < m; ) {
    const here = i * width + j;
    if (a[a0 + i] === b[b0 + j]) out.push([a0 + i++, b0 + j++]);
    else if (best[here + width] >= best[here + 1]) i++;
    else j++;
  }
}

function bySingles(a, b, a0, a1, b0, b1, out) {
  const once = (list, from, to) => {
    const at = new Map();
    for (let i = from; i < to; i++) at.set(list[i], at.has(list[i]) ? -1 : i);
    return at;
  };
  const inB = once(b, b0, b1);
  const anchors = [];
  for (const [word, i] of once(a, a0, a1)) {
    const j = inB.get(word) ?? -1;
    if (i >= 0 && j >= 0) anchors.push([i, j]);
  }
  const kept = rising(anchors);
  if (!kept.length) return;
  let [i, j] = [a0, b0];
  for (const [nextI, nextJ] of kept) {
    common(a, b, i, nextI, j, nextJ, out);
    out.push([nextI, nextJ]);
    [i, j] = [nextI + 1, nextJ + 1];
  }
  common(a, b, i, a1, j, b1, out);
}

/** The longest run of pairs that rises on both sides. */
function rising(pairs) {
  const piles = [];
  for (const pair of pairs) {
    let low = 0;
    let high = piles.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (piles[middle].pair[1] < pair[1]) low = middle + 1;
      else high = middle;
    }
    piles[low] = { pair, before: piles[low - 1] };
  }
  const run = [];
  for (let top = piles.at(-1); top; top = top.before) run.unshift(top.pair);
  return run;
}

/** Which tokens differ: [left flags, right flags]. A lone sign or short word between two changes is part of the change. */
function differing(left, right) {
  const numbers = new Map();
  const number = ({ text }) => numbers.get(text) ?? numbers.set(text, numbers.size).size - 1;
  const [a, b] = [left.map(number), right.map(number)];
  const pairs = [];
  common(a, b, 0, a.length, 0, b.length, pairs);
  const runs = [];
  for (const pair of pairs) {
    const run = runs.at(-1);
    const [i, j] = run?.at(-1) ?? [];
    if (run && pair[0] === i + 1 && pair[1] === j + 1) run.push(pair);
    else runs.push([pair]);
  }
  const flags = [a.map(() => true), b.map(() => true)];
  runs.forEach((run, at) => {
    const inside = at > 0 && at < runs.length - 1;
    const letters = run.reduce((sum, [i]) => sum + (left[i].word ? left[i].text.length : 0), 0);
    const short = letters < 4 && !run.some(([i]) => /[^\u0000-\u2fff]/.test(left[i].text));
    if (inside && short) return;
    for (const [i, j] of run) flags[0][i] = flags[1][j] = false;
  });
  return flags;
}

/** Neighbours that differ become one range, as far as they stand in one block. */
function ranges(list, flags) {
  const found = [];
  let open = null;
  list.forEach((token, at) => {
    if (!flags[at]) {
      open = null;
    } else if (open && open.block === token.block) {
      open.range.setEnd(token.node, token.end);
    } else {
      const range = document.createRange();
      range.setStart(token.node, token.start);
      range.setEnd(token.node, token.end);
      open = { range, block: token.block };
      found.push(range);
    }
  });
  return found;
}

/** For browsers without the highlight API: wraps what differs, each text node for itself. */
function wrap(list, flags) {
  const parts = new Map();
  list.forEach((token, at) => {
    if (!flags[at]) return;
    const spans = parts.get(token.node) ?? [];
    const last = spans.at(-1);
    if (last && flags[at - 1] && list[at - 1].node === token.node) last[1] = token.end;
    else spans.push([token.start, token.end]);
    parts.set(token.node, spans);
  });
  for (const [node, spans] of parts) {
    if (node.parentElement.closest("math")) continue;
    for (const [start, end] of spans.reverse()) {
      const range = document.createRange();
      range.setStart(node, start);
      range.setEnd(node, end);
      const mark = document.createElement("mark");
      mark.className = "differs";
      range.surroundContents(mark);
    }
  }
}

function clear(answers) {
  globalThis.CSS?.highlights?.delete("differs");
  for (const answer of answers) {
    for (const mark of answer.querySelectorAll("mark.differs")) mark.replaceWith(...mark.childNodes);
    answer.normalize();
  }
}

/**
 * Marks the words in which two rendered answers differ, or takes the marks away; says how many there are.
 * Call it again after the texts changed or were toggled: it looks at what is visible. Gives the number of words.
 */
export function toggleDifferences(left, right, on) {
  clear([left, right]);
  const announce = document.getElementById("announce");
  if (!on) {
    if (announce) announce.textContent = "Differences are not marked.";
    return 0;
  }
  const lists = [tokens(left), tokens(right)];
  const flags = differing(...lists);
  if (globalThis.CSS?.highlights && globalThis.Highlight) {
    CSS.highlights.set("differs", new Highlight(...lists.flatMap((list, side) => ranges(list, flags[side]))));
  } else {
    lists.forEach((list, side) => wrap(list, flags[side]));
  }
  const count = lists.reduce((sum, list, side) => sum + list.filter((token, at) => token.word && flags[side][at]).length, 0);
  if (announce) announce.textContent = count === 1 ? "1 word differs." : `${count} words differ.`;
  return count;
}
