/** All runs. */

import { get, route, view } from "../api.js";
import { card, field, h, table, tile, tiles } from "../dom.js";
import { bytes, count, plural, saving, time, whole } from "../format.js";
import { empty } from "../states.js";

const AT_ONCE = 50;
const NOTHING = ["–", "–", "–", "–"];

const HEAD = [
  "run",
  "state in memory",
  "state on disk",
  "latest",
  "checkpoints",
  "optimizer",
  "parameters",
  "written (UTC)",
];

function row(run) {
  const cells = Array.from({ length: 5 }, () => h("td", {}, "…"));
  const link = h("a", { href: view(["runs", run.run]) }, run.run);
  const latest = h("a", { href: view(["runs", run.run, run.latest_step]) }, run.latest_step);
  const element = h(
    "tr",
    {},
    h("th", { scope: "row" }, link),
    cells.slice(0, 2),
    h("td", {}, latest),
    h("td", {}, whole(run.checkpoints)),
    cells.slice(2),
  );
  return { element, cells };
}

async function complete(run, cells, signal) {
  let texts;
  try {
    const info = await get(route(["checkpoints", run.run, run.latest_step, "info"]), signal);
    texts = info.error
      ? [h("span", { class: "bad" }, "⚠ damaged"), ...NOTHING]
      : [
          `${bytes(info.state_bytes)} (${saving(info.state_bytes, info.adamw_bytes)})`,
          `${bytes(info.stored_bytes)} (${saving(info.stored_bytes, info.adamw_bytes)})`,
          info.algorithm,
          count(info.elements),
          time(info.created),
        ];
  } catch (error) {
    if (error.name === "AbortError") return;
    texts = ["not known", ...NOTHING];
  }
  cells.forEach((cell, i) => cell.replaceChildren(texts[i]));
}

function listing(page, runs, limit) {
  const shown = runs.slice(0, limit);
  const rows = shown.map(row);
  rows.forEach(({ cells }, i) => complete(shown[i], cells, page.signal));
  const parts = [
    table(
      "Runs",
      HEAD,
      rows.map((one) => one.element),
      { class: "first" },
    ),
  ];
  if (!shown.length) parts.push(empty("No run has that in its name."));
  if (shown.length < runs.length) {
    const more = (event) =>
      event.target.closest(".listing").replaceChildren(...listing(page, runs, limit + AT_ONCE));
    parts.push(
      h("button", { type: "button", onclick: more }, `Show more of ${whole(runs.length)}`),
    );
  }
  return parts;
}

/** Show all runs, with the size of the latest checkpoint of each. */
export async function showRuns(page) {
  const { items } = await get(route(["runs"]), page.signal);
  const heading = h("h1", {}, "Runs");
  if (!items.length) {
    page.body.replaceChildren(
      heading,
      empty(
        "There are no checkpoints yet.",
        h("p", {}, "Send one with ", h("code", {}, "luma push FOLDER luma://HOST/RUN/STEP"), "."),
      ),
    );
    return;
  }
  const place = h("div", { class: "listing" });
  const filter = h("input", { type: "search", value: page.query.get("q") ?? "" });
  const draw = () => {
    const text = filter.value.trim().toLowerCase();
    const chosen = items.filter((one) => one.run.toLowerCase().includes(text));
    place.replaceChildren(...listing(page, chosen, AT_ONCE));
  };
  filter.addEventListener("input", () => {
    page.replace(view(["runs"], { q: filter.value.trim() }));
    draw();
  });
  draw();
  const total = items.reduce((sum, one) => sum + one.checkpoints, 0);
  page.body.replaceChildren(
    heading,
    tiles(tile(whole(items.length), "runs"), tile(whole(total), "checkpoints")),
    h(
      "p",
      { class: "quiet" },
      "Sizes are those of the latest checkpoint. In brackets: against the 8 bytes per parameter of AdamW in float32.",
    ),
    card("All runs", field(`Find among ${plural(items.length, "run")}`, filter), place),
  );
}
