/** Two checkpoints side by side. */

import { get, route, view } from "../api.js";
import { card, field, h, table, tile, tiles } from "../dom.js";
import { number, plural, share, whole } from "../format.js";
import { layerMaps } from "../heat.js";
import { MOMENTS } from "../metrics.js";
import { into } from "../states.js";

const ROWS = 25;

function form(page, known, asked) {
  const list = h(
    "datalist",
    { id: "checkpoints" },
    known.map((name) => h("option", { value: name })),
  );
  const input = (name, more) =>
    h("input", { name, value: asked[name] ?? "", autocomplete: "off", ...more });
  const place = {
    list: "checkpoints",
    required: true,
    placeholder: "run/step",
    pattern: "[^\\/]+\\/[^\\/]+",
  };
  const submit = (event) => {
    event.preventDefault();
    const values = Object.fromEntries(new FormData(event.target));
    page.go(view(["compare"], values));
  };
  return h(
    "form",
    { class: "card line", onsubmit: submit },
    field("Checkpoint", input("a", place)),
    field("compared with", input("b", place)),
    field("only parameters like", input("param", { placeholder: "*" })),
    h("button", { type: "submit" }, "Compare"),
    list,
  );
}

function moment(entry, name) {
  return entry.moments.find((one) => one.moment === name);
}

function summary(found) {
  const { total, identical } = found.difference;
  const changed = total.parameters - total.identical_parameters;
  const moments = total.moments.map((one) =>
    tile(
      share(one.error.relative_rms),
      `${(MOMENTS[one.moment] ?? one.moment).toLowerCase()}: drift`,
      one.codes_differ_share === null ? null : `${share(one.codes_differ_share)} of codes differ`,
    ),
  );
  return tiles(
    tile(
      identical ? "equal" : "different",
      "bit for bit",
      `${whole(changed)} of ${plural(total.parameters, "tensor")} differ`,
    ),
    tile(found.cosine_update === null ? "–" : found.cosine_update.toFixed(4), "cosine of updates"),
    tile(share(total.update.relative_rms), "update: drift"),
    moments,
  );
}

function row(entry) {
  if (entry.not_compared) {
    const reason = h("td", { colspan: "5", class: "bad" }, `⚠ not compared: ${entry.not_compared}`);
    return h("tr", {}, h("th", { scope: "row" }, entry.name), reason);
  }
  const [m, v] = ["exp_avg", "exp_avg_sq"].map((name) => moment(entry, name));
  const cells = [
    share(entry.update.relative_rms),
    share(m?.error.relative_rms),
    share(v?.error.relative_rms),
    share(m?.codes_differ_share),
    share(v?.codes_differ_share),
  ];
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, entry.name),
    cells.map((text) => h("td", {}, text)),
  );
}

function drift(entry) {
  return entry.not_compared ? Infinity : (entry.update.relative_rms ?? -1);
}

function parametersTable(parameters) {
  const sorted = parameters.toSorted((one, other) => drift(other) - drift(one));
  const head = [
    "parameter",
    "update",
    "first moment",
    "second moment",
    "m codes differ",
    "v codes differ",
  ];
  const holder = table("Parameters by drift", head, sorted.slice(0, ROWS).map(row), {
    class: "numbers",
  });
  if (sorted.length <= ROWS) return [holder];
  const more = h("button", { type: "button" }, `Show all ${whole(sorted.length)}`);
  more.addEventListener("click", () => {
    holder.querySelector("tbody").append(...sorted.slice(ROWS).map(row));
    more.remove();
  });
  return [holder, more];
}

function onlyIn(name, names) {
  if (!names.length) return [];
  const entries = names.map((one) => h("li", {}, h("code", {}, one)));
  return [h("h3", {}, `Only in ${name}`), h("ul", {}, entries)];
}

function result(found) {
  const { parameters, only_in_a: onlyA, only_in_b: onlyB } = found.difference;
  const cells = parameters
    .filter((one) => !one.not_compared && one.update.relative_rms !== null)
    .map((one) => ({
      module: one.name,
      value: one.update.relative_rms,
      title: `${one.name}: ${number(one.update.relative_rms)}`,
      mark: one.update.nonfinite > 0,
    }));
  const lonely = [...onlyIn(found.a, onlyA), ...onlyIn(found.b, onlyB)];
  return [
    summary(found),
    h(
      "p",
      { class: "quiet" },
      "Drift is rms(b − a) / rms(a): how far values moved, against their own size. The update is what the optimizer would do with the state, apart from learning rate and weight decay.",
    ),
    cells.length
      ? card("Drift of the update by layer", ...layerMaps("drift of the update", cells, share))
      : "",
    card("Parameters by drift", ...parametersTable(parameters)),
    lonely.length ? card("Not in both", ...lonely) : "",
  ];
}

/** Show the comparison that the address asks for, or ask for one. */
export async function showCompare(page) {
  const asked = Object.fromEntries(page.query);
  const { items } = await get(route(["checkpoints"], { limit: 1000 }), page.signal);
  const known = items.map((one) => `${one.run}/${one.step}`);
  const place = h("div");
  page.body.replaceChildren(h("h1", {}, "Compare"), form(page, known, asked), place);
  const { a, b, param } = asked;
  if (!a || !b) {
    place.append(
      h("p", { class: "quiet" }, "Name two checkpoints, or tick two in the list of a run."),
    );
    return;
  }
  into(place, page.signal, "Comparing…", async () =>
    result(await get(route(["compare"], { a, b, param }), page.signal)),
  );
}
