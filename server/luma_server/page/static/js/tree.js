/** The modules of a checkpoint as a table whose rows open. */

import { h, table } from "./dom.js";
import { bits, count, number, plural, share } from "./format.js";
import { asModule, wild } from "./metrics.js";

const HEAD = [
  "module",
  "parameters",
  "bits each",
  "update rms",
  "m zero",
  "m saturated",
  "v zero",
  "v saturated",
  "not finite",
];

/** Return the module that holds a parameter itself. */
function ownerOf(parameter) {
  const at = parameter.lastIndexOf(".");
  return at < 0 ? parameter : parameter.slice(0, at);
}

/** Mark what is not finite: a sign, a number and words. */
export function finiteness(stats) {
  const values = wild(stats);
  if (!values && !stats.nonfinite) return "none";
  const words = [];
  if (values) words.push(plural(values, "value"));
  if (stats.nonfinite) words.push(`${plural(stats.nonfinite, "block")} left out`);
  return h("strong", { class: "bad" }, `⚠ ${words.join(", ")}`);
}

/**
 * The tree.
 *
 * @param report statistics of every parameter.
 * @param modulesAt returns a promise of the modules of a depth.
 */
export class ModuleTree {
  constructor(report, modulesAt) {
    this.parameters = report.parameters;
    this.modulesAt = modulesAt;
    this.rows = h("tbody");
    const holder = table("Modules", HEAD, [], { class: "tree" });
    holder.querySelector("tbody").replaceWith(this.rows);
    this.element = holder;
  }

  /** Fill the first level; open what is the only row of its level. */
  async start() {
    const items = await this.modulesAt(1);
    const rows = items.map((one) => this.row(one, 1));
    this.rows.append(...rows);
    let only = rows;
    while (only.length === 1 && only[0].open) only = await only[0].open();
  }

  /** Return the rows below a module. */
  async below(name, depth) {
    const items = await this.modulesAt(depth + 1);
    const modules = items
      .filter((one) => one.module.startsWith(`${name}.`))
      .map((one) => this.row(one, depth + 1));
    const own = this.parameters
      .filter((one) => ownerOf(one.name) === name && one.name !== name)
      .map((one) => this.row(asModule(one.name, one), depth + 1));
    return [...modules, ...own];
  }

  row(stats, level) {
    const name = stats.module;
    const opens = this.parameters.some((one) => one.name.startsWith(`${name}.`));
    const short = this.short(name, level);
    const link = h(
      "a",
      { href: `?module=${encodeURIComponent(name)}`, "data-module": name, "aria-label": name },
      short,
    );
    const element = h("tr", { "data-name": name });
    const button = opens ? this.opener(element, name, level) : h("span", { class: "twig" });
    const [m, v] = [stats.moments.exp_avg, stats.moments.exp_avg_sq];
    element.append(
      h("th", { scope: "row", "--level": level - 1 }, h("span", { class: "branch" }, button, link)),
      ...[
        count(stats.elements),
        bits(stats.bits_per_parameter),
        number(stats.update.rms),
        ...[m, v].flatMap((one) => [share(one?.zero_share), share(one?.saturated_share)]),
        finiteness(stats),
      ].map((content) => h("td", {}, content)),
    );
    return element;
  }

  /** Return a name without that of the row above it. */
  short(name, level) {
    const parts = name.split(".");
    return level > 1 ? parts.slice(Math.min(level, parts.length) - 1).join(".") : name;
  }

  opener(element, name, level) {
    const button = h("button", {
      type: "button",
      class: "twig",
      "aria-expanded": "false",
      "aria-label": `Inside ${name}`,
    });
    element.open = async () => {
      if (button.getAttribute("aria-expanded") === "true") return [];
      button.setAttribute("aria-expanded", "true");
      const rows = await this.below(name, level);
      if (button.getAttribute("aria-expanded") === "true") element.after(...rows);
      return rows;
    };
    button.addEventListener("click", () => {
      if (button.getAttribute("aria-expanded") === "false") {
        element.open().catch(() => button.setAttribute("aria-expanded", "false"));
        return;
      }
      button.setAttribute("aria-expanded", "false");
      while (element.nextSibling?.dataset.name.startsWith(`${name}.`)) {
        element.nextSibling.remove();
      }
    });
    return button;
  }

  /** Open what leads to a module. */
  async reveal(name) {
    const seen = new Set();
    for (;;) {
      const row = [...this.rows.children].find(
        (one) => one.open && !seen.has(one) && name.startsWith(`${one.dataset.name}.`),
      );
      if (!row) return;
      seen.add(row);
      await row.open();
    }
  }

  /** Mark the row of the module that is looked at. */
  mark(name) {
    for (const link of this.rows.querySelectorAll("a[data-module]")) {
      if (link.dataset.module === name) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }
}
