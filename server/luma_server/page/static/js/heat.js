/** Heat maps as tables: colour for eyes, the same numbers for everything else. */

import { h, table } from "./dom.js";
import { number } from "./format.js";

/** Shade from which `--on-high` of plots.css is easier to read than `--on-low`. */
const STRONG = 0.605;

/** Return where values lie between the smallest and the largest, 0 to 1, in powers of ten. */
function shader(values) {
  const known = values.filter((value) => value > 0).map(Math.log10);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const span = high - low || 1;
  return (value) => (value > 0 ? (high > low ? (Math.log10(value) - low) / span : 0.5) : null);
}

function cell(value, shade, { format, href, title, mark }) {
  if (value === undefined) return h("td", { class: "none" });
  const at = shade(value);
  const text = [mark ? "⚠ " : "", format(value)];
  return h(
    "td",
    {
      class: `heat${at > STRONG ? " strong" : ""}${at === null ? " zero" : ""}`,
      "--heat": at === null ? null : at.toFixed(3),
      title,
    },
    href ? h("a", { href }, text) : text,
  );
}

/**
 * Return a table whose cells are coloured by the logarithm of their value.
 *
 * Rows are `{name, href, cells}`, with `cells` a map from column to `{value, href, title, mark}`.
 */
export function heatMap(caption, corner, columns, rows, format = number) {
  const values = valuesOf(rows);
  return [
    cellsTable(caption, corner, columns, rows, { shade: shader(values), format }),
    scale(values, format),
  ];
}

function valuesOf(rows) {
  return rows.flatMap((row) => [...row.cells.values()].map((one) => one.value));
}

function cellsTable(caption, corner, columns, rows, { shade, format }) {
  const body = rows.map((row) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, row.href ? h("a", { href: row.href }, row.name) : row.name),
      columns.map((column) => {
        const found = row.cells.get(column);
        return cell(found?.value, shade, { format, ...found });
      }),
    ),
  );
  return table(caption, [corner, ...columns], body, { class: "heatmap" });
}

function scale(values, format) {
  const known = values.filter((value) => value > 0);
  if (!known.length) return "";
  return h(
    "p",
    { class: "scale quiet", "aria-hidden": "true" },
    format(Math.min(...known)),
    h("span", { class: "ramp" }),
    format(Math.max(...known)),
  );
}

/** Split a module's name at its first number: `["h.3", "attn.q"]`; without one, `[null, name]`. */
export function layerOf(name) {
  const parts = name.split(".");
  const at = parts.findIndex((part) => /^\d+$/.test(part));
  if (at < 0) return [null, name];
  return [parts.slice(0, at + 1).join("."), parts.slice(at + 1).join(".") || "(itself)"];
}

/**
 * Return heat maps of one number per module: layers down, their parts across.
 *
 * Modules are `{module, value, href, title, mark}`; what is in no numbered layer comes after.
 */
export function layerMaps(caption, modules, format = number) {
  const layers = new Map();
  const columns = new Set();
  const outside = [];
  for (const one of modules) {
    const [layer, part] = layerOf(one.module);
    if (layer === null) {
      outside.push({ name: one.module, cells: new Map([["value", one]]) });
      continue;
    }
    if (!layers.has(layer)) layers.set(layer, new Map());
    layers.get(layer).set(part, one);
    columns.add(part);
  }
  const rows = [...layers].map(([name, cells]) => ({ name, cells }));
  const values = valuesOf([...rows, ...outside]);
  const look = { shade: shader(values), format };
  const found = [];
  if (rows.length) found.push(cellsTable(caption, "layer", [...columns], rows, look));
  if (outside.length) {
    const title = rows.length ? `${caption}, outside layers` : caption;
    found.push(cellsTable(title, "module", ["value"], outside, look));
  }
  return [...found, scale(values, format)];
}
