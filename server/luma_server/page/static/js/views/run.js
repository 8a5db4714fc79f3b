/** One run: its checkpoints, and what changed over its steps. */

import { get, pause, route, view } from "../api.js";
import { card, field, h, select, table } from "../dom.js";
import { bits, bytes, count, plural, saving, time, whole } from "../format.js";
import { heatMap } from "../heat.js";
import { History } from "../history.js";
import { METRICS, metricOf } from "../metrics.js";
import { lines } from "../plots.js";
import { into, waiting } from "../states.js";

const LINES = 8;
const DEPTHS = [
  ["", "chosen for this run"],
  ["0", "all together"],
  ["1", "1"],
  ["2", "2"],
].concat(["3", "4", "5"].map((depth) => [depth, depth]));
const AGAIN_SECONDS = 2;

function drawing(run, { series, hidden }, [, title, format]) {
  const drawn = series.slice(0, LINES).map(({ name, items }) => ({
    name,
    points: items.filter((one) => one.value !== null).map((one) => [one.optimizer_step, one.value]),
  }));
  const parts = [lines(drawn, { label: `${title} over steps` })];
  if (series.length > 1) {
    const steps = series[0].items.map((one) => one.step);
    const rows = series.map(({ name, items }) => ({
      name,
      cells: new Map(
        items
          .filter((one) => one.value !== null)
          .map((one) => [
            one.step,
            { value: one.value, href: view(["runs", run, one.step], { module: name }) },
          ]),
      ),
    }));
    parts.push(h("h3", {}, "Modules and checkpoints"));
    parts.push(...heatMap(`${title}: modules and checkpoints`, "module", steps, rows, format));
  }
  if (series.length > LINES)
    parts.push(h("p", { class: "quiet" }, `Lines: the ${LINES} largest modules.`));
  if (hidden > 0)
    parts.push(h("p", { class: "quiet" }, `${plural(hidden, "smaller module")} left out.`));
  return parts;
}

/** Fill `place` with a metric of every module, again while the server is measuring. */
async function showSeries(history, place, signal, { metric, depth }) {
  await into(place, signal, "Measuring…", async () => {
    for (;;) {
      const found = await history.numbers(metric, depth, signal);
      const parts = found.series.length ? drawing(history.run, found, metricOf(metric)) : [];
      if (found.failed) {
        const text = `⚠ ${plural(found.failed, "checkpoint")} cannot be read.`;
        parts.push(h("p", { class: "bad" }, text));
      }
      if (!found.pending) return parts;
      const text = `Measuring ${plural(found.pending, "checkpoint")}…`;
      place.replaceChildren(waiting(text), ...parts);
      await pause(AGAIN_SECONDS, signal);
    }
  });
}

function seriesCard(page, run, latest) {
  const asked = {
    metric: metricOf(page.query.get("metric"))[0],
    depth: page.query.get("depth") ?? "",
  };
  const place = h("div");
  const history = new History(run, latest, page.signal);
  let shown = new AbortController();
  const show = () => {
    shown.abort();
    shown = new AbortController();
    showSeries(history, place, AbortSignal.any([page.signal, shown.signal]), asked);
  };
  const set = (name) => (value) => {
    asked[name] = value;
    page.replace(view(["runs", run], asked));
    show();
  };
  const controls = h(
    "div",
    { class: "line" },
    field(
      "Number",
      select(
        METRICS.map(([name, text]) => [name, text]),
        asked.metric,
        set("metric"),
      ),
    ),
    field("Depth of modules", select(DEPTHS, asked.depth, set("depth"))),
  );
  show();
  return card("Over its steps", controls, place);
}

function labels(info) {
  const chips = Object.entries(info.labels).map(([key, value]) =>
    value ? `${key}: ${value}` : key,
  );
  if (info.pinned) chips.unshift("pinned");
  return chips.map((text) => [h("span", { class: "chip" }, text), " "]);
}

function row(run, info, choose) {
  const box = h("input", {
    type: "checkbox",
    value: `${run}/${info.step}`,
    "aria-label": `Compare ${info.step}`,
    onchange: choose,
  });
  const name = h(
    "th",
    { scope: "row" },
    h("a", { href: view(["runs", run, info.step]) }, info.step),
  );
  if (info.error) {
    const text = h("td", { colspan: "8" }, h("span", { class: "bad" }, `⚠ ${info.error}`));
    return h("tr", {}, h("td"), name, text);
  }
  const cells = [
    `${bytes(info.state_bytes)} (${saving(info.state_bytes, info.adamw_bytes)})`,
    `${bytes(info.stored_bytes)} (${saving(info.stored_bytes, info.adamw_bytes)})`,
    bits(info.elements ? (8 * info.state_bytes) / info.elements : null),
    whole(info.optimizer_step),
    info.algorithm,
    count(info.elements),
    time(info.created),
    labels(info),
  ];
  return h(
    "tr",
    {},
    h("td", {}, box),
    name,
    cells.map((content) => h("td", {}, content)),
  );
}

const HEAD = [
  "compare",
  "checkpoint",
  "state in memory",
  "state on disk",
  "bits each",
  "steps done",
  "optimizer",
  "parameters",
  "written (UTC)",
  "labels",
];

function checkpointsCard(page, run, first) {
  const compare = h("button", { type: "button", disabled: true }, "Compare two checkpoints");
  const holder = table("Checkpoints", HEAD, []);
  const rows = holder.querySelector("tbody");
  const marked = () => [...rows.querySelectorAll("input:checked")].map((one) => one.value);
  const choose = () => {
    compare.disabled = marked().length !== 2;
  };
  compare.addEventListener("click", () => {
    const [a, b] = marked();
    page.go(view(["compare"], { a, b }));
  });
  const more = h("button", { type: "button" }, "Show more");
  let cursor = null;
  const add = (found) => {
    rows.append(...found.items.map((info) => row(run, info, choose)));
    cursor = found.next_cursor;
    more.hidden = cursor === null;
  };
  more.addEventListener("click", async () => {
    more.disabled = true;
    try {
      add(await get(route(["checkpoints"], { run, cursor }), page.signal));
    } finally {
      more.disabled = false;
    }
  });
  add(first);
  return card("Checkpoints", holder, h("p", { class: "line" }, compare, more));
}

/** Show a run. */
export async function showRun(page, run) {
  const found = await get(route(["checkpoints"], { run }), page.signal);
  const trail = h(
    "nav",
    { "aria-label": "Where this is", class: "trail" },
    h("a", { href: "/runs" }, "Runs"),
    " / ",
  );
  const heading = h("h1", {}, run);
  if (!found.items.length) {
    page.body.replaceChildren(
      trail,
      heading,
      h("div", { class: "empty" }, h("p", {}, "There is no checkpoint of this run.")),
    );
    return;
  }
  const sound = found.items.filter((one) => !one.error);
  const parts = [trail, heading];
  if (sound.length) parts.push(seriesCard(page, run, sound.at(-1).step));
  page.body.replaceChildren(...parts, checkpointsCard(page, run, found));
}
