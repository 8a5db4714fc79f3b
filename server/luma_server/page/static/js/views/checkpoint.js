/** One checkpoint: its modules, and what their state looks like. */

import { get, route, view } from "../api.js";
import { announce, card, field, h, select, tile, tiles } from "../dom.js";
import { bits, bytes, count, number, plural, saving, share, time, whole } from "../format.js";
import { layerMaps } from "../heat.js";
import { METRICS, MOMENTS, asModule, metricOf, pick, wild } from "../metrics.js";
import { histogram, ranges, scaleHistogram } from "../plots.js";
import { into } from "../states.js";
import { ModuleTree, finiteness } from "../tree.js";

const DEEPEST = 32;
const RANGES = 24;
const STYLES = { exp_avg: "s2", exp_avg_sq: "s3" };

function facts(info) {
  const saved = saving(info.state_bytes, info.adamw_bytes);
  const pinned = info.pinned ? ["pinned"] : [];
  const labels = Object.entries(info.labels).map(([key, value]) =>
    value ? `${key}: ${value}` : key,
  );
  return [
    h(
      "p",
      { class: "quiet" },
      `${info.algorithm}, ${plural(info.optimizer_step, "step")} done, written ${time(info.created)} UTC`,
    ),
    h(
      "p",
      {},
      [...pinned, ...labels].map((text) => [h("span", { class: "chip" }, text), " "]),
    ),
    tiles(
      tile(bytes(info.state_bytes), "state in memory", `${saved} against AdamW`),
      tile(
        bytes(info.stored_bytes),
        "state on disk",
        `${saving(info.stored_bytes, info.adamw_bytes)} against AdamW`,
      ),
      tile(
        bits(info.elements ? (8 * info.state_bytes) / info.elements : null),
        "bits per parameter",
        "64 in AdamW",
      ),
      tile(count(info.elements), "parameters", `in ${plural(info.parameters, "tensor")}`),
    ),
  ];
}

/** Return the summary and histograms of a module. */
function shape(stats, edges) {
  const notes = (one) =>
    [
      `rms ${number(one.rms)}`,
      `largest ${number(one.max)}`,
      one.zero_share === null ? null : `zero ${share(one.zero_share)}`,
      one.saturated_share === null ? null : `saturated ${share(one.saturated_share)}`,
      one.nonfinite ? `⚠ ${whole(one.nonfinite)} not finite` : null,
    ].filter(Boolean);
  const draw = (title, one, style) =>
    histogram(title, {
      counts: one.histogram,
      edges,
      elements: one.elements,
      style,
      notes: notes(one),
    });
  const moments = Object.entries(stats.moments).map(([name, one]) =>
    draw(MOMENTS[name] ?? name, one, STYLES[name]),
  );
  return [
    h(
      "p",
      {},
      `${plural(stats.elements, "parameter")}, ${bits(stats.bits_per_parameter)} bits each, not finite: `,
      finiteness(stats),
    ),
    h("div", { class: "grid3" }, draw("Update", stats.update, "s1"), moments),
    scales(stats),
  ];
}

/** Return histograms of a module's block scales. */
function scales(stats) {
  const known = Object.entries(stats.moments).filter(([, one]) => one.scale);
  const plots = known.map(([name, { scale }]) => {
    const zeros = scale.histogram.zeros;
    const notes = [
      plural(scale.blocks, "block"),
      zeros ? `zero ${share(zeros / scale.blocks)}` : null,
      scale.median === undefined ? null : `median ${number(scale.median)}`,
      scale.nonfinite ? `⚠ ${whole(scale.nonfinite)} not finite` : null,
    ].filter(Boolean);
    const style = STYLES[name];
    return scaleHistogram(`${MOMENTS[name] ?? name}: block scales`, scale, { style, notes });
  });
  const text = "The state keeps no block scales.";
  return plots.length ? h("div", { class: "grid2" }, plots) : h("p", { class: "quiet" }, text);
}

/** Return the range of block scales of each of a module's largest parameters. */
function scaleRanges(report, name) {
  const inside = report.parameters.filter(
    (one) => !name || one.name === name || one.name.startsWith(`${name}.`),
  );
  if (inside.length < 2) return [];
  const scaleOf = (one, moment) => one.moments.find((found) => found.moment === moment)?.scale;
  const scaled = inside.filter((one) => one.moments.some(({ scale }) => scale));
  const largest = scaled.toSorted((a, b) => b.elements - a.elements).slice(0, RANGES);
  const plots = Object.entries(MOMENTS).map(([moment, title]) => {
    const rows = largest
      .filter((one) => scaleOf(one, moment))
      .map((one) => ({ name: one.name, ...scaleOf(one, moment) }));
    return ranges(`${title}: smallest, median and largest block scale`, rows, STYLES[moment]);
  });
  const left = scaled.length - largest.length;
  return [
    h("div", { class: "grid2" }, plots.filter(Boolean)),
    left > 0 ? h("p", { class: "quiet" }, `${plural(left, "smaller tensor")} left out.`) : "",
  ];
}

function heatCard(page, modules) {
  const place = h("div");
  const draw = (metric) => {
    const [name, title, format] = metricOf(metric);
    const cells = modules
      .map((one) => ({ one, value: pick(one, name) }))
      .filter(({ value }) => value !== null)
      .map(({ one, value }) => ({
        module: one.module,
        value,
        href: `?module=${encodeURIComponent(one.module)}`,
        title: `${one.module}: ${format(value)}`,
        mark: wild(one) + one.nonfinite > 0,
      }));
    place.replaceChildren(...layerMaps(title, cells, format));
    for (const link of place.querySelectorAll("a")) {
      link.dataset.module = new URLSearchParams(link.search).get("module");
    }
  };
  draw(METRICS[0][0]);
  const options = METRICS.map(([name, text]) => [name, text]);
  return card("Layers", field("Number", select(options, METRICS[0][0], draw)), place);
}

/** What of the statistics is looked at: all, a module, or a parameter. */
class Detail {
  constructor(page, report, modulesAt) {
    Object.assign(this, { page, report, modulesAt });
    this.title = h("h2", { id: "detail", tabindex: "-1" });
    this.place = h("div");
    this.element = h(
      "section",
      { class: "card", "aria-labelledby": "detail" },
      this.title,
      this.place,
    );
  }

  async find(name) {
    if (!name) return asModule("", this.report.total);
    const parameter = this.report.parameters.find((one) => one.name === name);
    if (parameter) return asModule(name, parameter);
    const items = await this.modulesAt(name.split(".").length);
    const found = items.find((one) => one.module === name);
    return found ?? null;
  }

  async show(name) {
    const stats = await this.find(name);
    this.title.textContent = name || "All modules";
    const all = name
      ? h("p", {}, h("a", { href: "?", "data-module": "" }, "Show all modules"))
      : "";
    this.place.replaceChildren(
      ...(stats
        ? [...shape(stats, this.report.histogram_edges), ...scaleRanges(this.report, name)]
        : [h("p", {}, "This checkpoint has no such module.")]),
      all,
    );
  }
}

async function contents(page, run, step) {
  const place = ["checkpoints", run, step, "stats"];
  const kept = new Map();
  const modulesAt = (depth) => {
    if (!kept.has(depth)) {
      const found = get(
        route([...place, "modules"], { depth: Math.min(depth, DEEPEST) }),
        page.signal,
      );
      kept.set(
        depth,
        found.then(({ items }) => items),
      );
    }
    return kept.get(depth);
  };
  const report = await get(route(place), page.signal);
  const tree = new ModuleTree(report, modulesAt);
  const detail = new Detail(page, report, modulesAt);
  const [finest] = await Promise.all([modulesAt(DEEPEST), tree.start()]);
  const look = async (name) => {
    await Promise.all([detail.show(name), tree.reveal(name)]);
    tree.mark(name);
  };
  page.body.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[data-module]");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const name = link.dataset.module;
    page.replace(view(["runs", run, step], { module: name }));
    look(name).then(() => {
      detail.title.focus();
      announce(name ? `Showing ${name}` : "Showing all modules");
    });
  });
  await look(page.query.get("module") ?? "");
  return [heatCard(page, finest), card("Modules", tree.element), detail.element];
}

/** Show a checkpoint. */
export async function showCheckpoint(page, run, step) {
  const info = await get(route(["checkpoints", run, step, "info"]), page.signal);
  const trail = h(
    "nav",
    { "aria-label": "Where this is", class: "trail" },
    h("a", { href: "/runs" }, "Runs"),
    " / ",
    h("a", { href: view(["runs", run]) }, run),
    " / ",
  );
  const place = h("div");
  const heading = h("h1", {}, `${run}/${step}`);
  if (info.error) {
    page.body.replaceChildren(trail, heading, h("p", { class: "bad" }, `⚠ ${info.error}`));
    return;
  }
  const compare = h(
    "a",
    { href: view(["compare"], { a: `${run}/${step}` }) },
    "Compare with another",
  );
  page.body.replaceChildren(trail, heading, ...facts(info), h("p", {}, compare), place);
  into(place, page.signal, "Measuring the state…", () => contents(page, run, step));
}
