/**
 * Plots as SVG, drawn again when their width changes.
 *
 * Colours come from the style sheet by class, so that plots follow light and dark.
 */

import { exponents, fitting, linear } from "./axes.js";
import { h, s, table } from "./dom.js";
import { number, percent, share, whole } from "./format.js";

const BOTTOM = 42;
const TOP = 12;
const RIGHT = 14;
/** Pixels on an axis for each label, the widest character of one, and what is between two. */
const TICK_ROOM = 70;
const TICK_CHARACTER = 7;
const TICK_GAP = 10;
/** Powers that the axis of a histogram spans at least, so that few bars are not huge. */
const LEAST_POWERS = 6;
/** Width below which names stand above what they name, and longest name beside it. */
const NARROW = 480;
const LONGEST_BESIDE = 34;

/** Return an element that `draw(width)` fills whenever its width changes. */
function responsive(draw) {
  const box = h("div", { class: "plot" });
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(box.clientWidth);
    if (!width || width === drawn) return;
    drawn = width;
    box.replaceChildren(draw(width));
  }).observe(box);
  return box;
}

/** Return where labels are drawn that do not touch one another: every one, or every second, ... */
function apart(ticks, atX, width) {
  const room = (text) => text.length * TICK_CHARACTER + TICK_GAP;
  const placed = ticks.map(([value, text]) => {
    const half = (room(text) - TICK_GAP) / 2;
    return [Math.min(width - half, Math.max(half, atX(value))), text];
  });
  for (let step = 1; step < placed.length; step += 1) {
    const kept = placed.filter((_, i) => i % step === 0);
    const free = kept.every(
      ([at, text], i) => !i || at - kept[i - 1][0] >= (room(text) + room(kept[i - 1][1])) / 2,
    );
    if (free) return kept;
  }
  return placed.slice(0, 1);
}

/** The area between two axes. */
function frame({ x, y, width, height, xLabel, yLabel, left = 56, label }) {
  const right = width - RIGHT;
  const bottom = height - BOTTOM;
  const atX = (value) => left + x.place(value) * (right - left);
  const atY = (value) => bottom - y.place(value) * (bottom - TOP);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
  svg.setAttribute("aria-label", label);
  for (const [value, text] of y.ticks(5)) {
    const at = atY(value);
    svg.append(
      s("line", { class: "grid", x1: left, x2: right, y1: at, y2: at }),
      s("text", { class: "tick end", x: left - 8, y: at + 4 }, text),
    );
  }
  const about = Math.max(2, Math.floor((right - left) / TICK_ROOM));
  for (const [at, text] of apart(x.ticks(about), atX, width)) {
    svg.append(s("text", { class: "tick middle", x: at, y: bottom + 18 }, text));
  }
  svg.append(
    s("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    s("text", { class: "label middle", x: (left + right) / 2, y: height - 5 }, xLabel),
  );
  if (yLabel) svg.append(s("text", { class: "label", x: 0, y: 10 }, yLabel));
  return { svg, atX, atY, left, right, bottom };
}

function legend(names) {
  if (names.length < 2) return null;
  const entries = names.map((name, i) =>
    h("li", { class: `s${i + 1}` }, h("span", { class: "key", "aria-hidden": "true" }), name),
  );
  return h("ul", { class: "legend" }, entries);
}

function drawLines(series, { label, xLabel }, width) {
  const all = series.flatMap((one) => one.points);
  const box = frame({
    x: linear(
      all.map(([x]) => x),
      { room: 0 },
    ),
    y: fitting(all.map(([, y]) => y)),
    width,
    height: Math.min(340, Math.max(240, width * 0.45)),
    xLabel,
    label,
  });
  series.forEach(({ points }, i) => {
    const path = points.map(([x, y]) => `${box.atX(x).toFixed(1)},${box.atY(y).toFixed(1)}`);
    const dots = points.map(([x, y]) => s("circle", { cx: box.atX(x), cy: box.atY(y), r: 2.6 }));
    box.svg.append(
      s(
        "g",
        { class: `s${i + 1}` },
        s("polyline", { class: "curve", points: path.join(" ") }),
        dots,
      ),
    );
  });
  return box;
}

/** Let pointer and arrow keys walk along the steps, and tell what is there. */
function walkable(plot, readout, series, xLabel, boxOf) {
  const steps = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))];
  steps.sort((a, b) => a - b);
  let at = -1;
  const show = (index) => {
    at = Math.min(steps.length - 1, Math.max(0, index));
    const { svg, atX, bottom } = boxOf();
    const x = atX(steps[at]);
    svg.querySelector(".cursor")?.remove();
    svg.append(s("line", { class: "cursor", x1: x, x2: x, y1: TOP, y2: bottom }));
    const values = series.map(({ name, points }) => {
      const found = points.find(([step]) => step === steps[at]);
      return `${name} ${found ? number(found[1]) : "–"}`;
    });
    readout.textContent = `${xLabel} ${whole(steps[at])}: ${values.join(", ")}`;
  };
  plot.addEventListener("pointermove", (event) => {
    const { svg, atX } = boxOf();
    const x = event.clientX - svg.getBoundingClientRect().left;
    const gaps = steps.map((step) => Math.abs(atX(step) - x));
    show(gaps.indexOf(Math.min(...gaps)));
  });
  plot.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    show(at + move);
  });
}

/**
 * Return lines over steps, with the same numbers as a table.
 *
 * Series are `{name, points: [[x, y], ...]}`; up to eight have colours of their own.
 */
export function lines(series, { label, xLabel = "step" }) {
  const known = series.filter((one) => one.points.length);
  if (!known.length) return h("p", { class: "quiet" }, "There is no number to draw.");
  let box;
  const plot = responsive((width) => {
    box = drawLines(known, { label, xLabel }, width);
    return box.svg;
  });
  plot.tabIndex = 0;
  plot.setAttribute("role", "group");
  plot.setAttribute("aria-label", `${label}: arrow keys walk along the steps`);
  const readout = h("p", { class: "readout", role: "status" }, "Point at a step for its numbers.");
  walkable(plot, readout, known, xLabel, () => box);
  return h(
    "figure",
    {},
    legend(known.map((one) => one.name)),
    plot,
    readout,
    numbers(known, label),
  );
}

function numbers(series, label) {
  const steps = [...new Set(series.flatMap((one) => one.points.map(([x]) => x)))];
  steps.sort((a, b) => a - b);
  const maps = series.map((one) => new Map(one.points));
  const rows = steps.map((step) => [whole(step), ...maps.map((map) => number(map.get(step)))]);
  return asTable(label, ["step", ...series.map((one) => one.name)], rows);
}

/** Return what a plot shows as text. */
function asTable(label, head, rows) {
  const body = rows.map(([name, ...texts]) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, name),
      texts.map((text) => h("td", {}, text)),
    ),
  );
  return h("details", {}, h("summary", {}, "Numbers"), table(label, head, body));
}

/**
 * Return shares of a whole by magnitude.
 *
 * `edges` are exponents of the bins' edges to the base `base`, one more than there are `counts`;
 * `what` is what the horizontal axis shows.
 */
function bars(title, { counts, edges, base, whole: all, style, notes, what, none }) {
  const used = counts.map((count, i) => [count, i]).filter(([count]) => count);
  const caption = h("figcaption", {}, h("strong", {}, title), ` ${notes.join(", ")}`);
  if (!used.length) return h("figure", {}, caption, h("p", { class: "quiet" }, none));
  const [first, last] = [used[0][1], used.at(-1)[1]];
  const span = (from, to) => `${number(base ** edges[from])} to ${number(base ** edges[to])}`;
  const [low, high] = [Math.floor(edges[first]), Math.ceil(edges[last + 1])];
  const room = Math.max(0, Math.ceil((LEAST_POWERS - (high - low)) / 2));
  const draw = (width) => {
    const y = linear([0, ...used.map(([count]) => count / all)], { room: 0.04 });
    const box = frame({
      x: exponents(low - room, high + room, base),
      y: { ...y, ticks: (about) => y.ticks(about).map(([at]) => [at, percent(at)]) },
      width,
      height: 210,
      xLabel: what,
      label: `${title}: ${what} ${span(first, last + 1)}`,
    });
    const drawn = used.map(([count, i]) => {
      const [x, end, top] = [box.atX(edges[i]), box.atX(edges[i + 1]), box.atY(count / all)];
      const text = `${span(i, i + 1)}: ${share(count / all)}`;
      const size = { width: Math.max(1, end - x - 1), height: Math.max(1, box.bottom - top) };
      return s(
        "rect",
        { class: "bar", x, y: box.bottom - size.height, ...size },
        s("title", {}, text),
      );
    });
    box.svg.append(s("g", { class: style }, drawn));
    return box.svg;
  };
  const rows = used.map(([count, i]) => [span(i, i + 1), share(count / all)]);
  const text = asTable(`${title}: share by ${what}`, [what, "share"], rows);
  return h("figure", {}, caption, responsive(draw), text);
}

/**
 * Return the share of elements by magnitude.
 *
 * `edges` are the log10 of the bins' edges, one more than there are `counts`.
 */
export function histogram(title, { elements, ...more }) {
  const none = "No finite value other than zero.";
  return bars(title, { base: 10, whole: elements, what: "magnitude", none, ...more });
}

/** Return the share of block scales by power of two; `scale` is as in the server's answer. */
export function scaleHistogram(title, scale, { style, notes }) {
  const { first, counts } = scale.histogram;
  const edges = Array.from({ length: counts.length + 1 }, (_, i) => first + i);
  const none = "No finite scale other than zero.";
  const look = { base: 2, whole: scale.blocks, what: "scale", none, style, notes };
  return bars(title, { counts, edges, ...look });
}

/** Return ranges on one axis of powers of two; rows are `{name, min, median, max}`. */
export function ranges(title, rows, style) {
  const known = rows.filter((row) => row.min !== null && row.max > 0);
  if (!known.length) return null;
  const positive = known.flatMap((row) => [row.min, row.median, row.max]).filter((x) => x > 0);
  const logs = positive.map(Math.log2);
  const [low, high] = [Math.floor(Math.min(...logs)), Math.ceil(Math.max(...logs))];
  const axis = exponents(low - 0.5, high + 0.5, 2);
  const long = known.some((row) => row.name.length > LONGEST_BESIDE);
  const draw = (width) => {
    const above = long || width < NARROW;
    const left = above ? RIGHT : 240;
    const pitch = above ? 36 : 20;
    const box = frame({
      x: axis,
      y: { place: () => 0, ticks: () => [] },
      width,
      height: TOP + known.length * pitch + BOTTOM,
      left,
      label: title,
      xLabel: "scale",
    });
    const room = above ? Math.floor(width / TICK_CHARACTER) : LONGEST_BESIDE;
    const look = { floor: Math.min(...positive), style, left, above, room };
    known.forEach((row, i) => drawRange(box, row, TOP + (i + 1) * pitch - 10, look));
    return box.svg;
  };
  const texts = known.map((row) => [row.name, ...[row.min, row.median, row.max].map(number)]);
  const text = asTable(title, ["parameter", "smallest", "median", "largest"], texts);
  return h("figure", {}, h("figcaption", {}, h("strong", {}, title)), responsive(draw), text);
}

function drawRange(box, row, y, { floor, style, left, above, room }) {
  const at = (value) => box.atX(Math.log2(Math.max(value, floor)));
  const text = `${row.name}: ${number(row.min)}, median ${number(row.median)}, ${number(row.max)}`;
  const name = row.name.length > room ? `…${row.name.slice(1 - room)}` : row.name;
  const place = above
    ? { class: "tick", x: 0, y: y - 11 }
    : { class: "tick end", x: left - 8, y: y + 4 };
  box.svg.append(
    s("text", place, name),
    s(
      "g",
      { class: style },
      s("title", {}, text),
      s("line", { class: "range", x1: at(row.min), x2: at(row.max), y1: y, y2: y }),
      s("circle", { cx: at(row.median), cy: y, r: 4 }),
    ),
  );
}
