/** The statistics of a run's checkpoints, by module. */

import { get, route } from "./api.js";
import { pick } from "./metrics.js";

const POINTS = 60;
const MODULES = 40;
const DEPTHS = [1, 2, 3, 4];

/**
 * The modules of a run over its checkpoints.
 *
 * One answer of the server holds all numbers of all modules of a checkpoint, so each checkpoint is
 * asked for once, whatever is shown of it, until `signal` says that the view is left.
 */
export class History {
  constructor(run, latest, signal) {
    this.run = run;
    this.latest = latest;
    this.signal = signal;
    this.kept = new Map();
  }

  /** Return the modules of a checkpoint by name. */
  modulesOf(step, depth) {
    const key = `${depth}/${step}`;
    if (!this.kept.has(key)) {
      const address = route(["checkpoints", this.run, step, "stats", "modules"], { depth });
      const found = get(address, this.signal).then(
        ({ items }) => new Map(items.map((one) => [one.module, one])),
      );
      found.catch(() => this.kept.delete(key));
      this.kept.set(key, found);
    }
    return this.kept.get(key);
  }

  /** Return the depth that was asked for, or the first that has several modules. */
  async depthOf(asked) {
    if (asked) return asked;
    for (const depth of DEPTHS) {
      if ((await this.modulesOf(this.latest, depth)).size > 2) return depth;
    }
    return DEPTHS.at(-1);
  }

  /**
   * Return what is known of a number by now.
   *
   * `series` are `{name, items: [{step, optimizer_step, value}]}`, the largest modules first;
   * `hidden` modules are left out; `pending` and `failed` count checkpoints.
   */
  async numbers(metric, asked, signal) {
    const address = route(["runs", this.run, "series"], { metric, points: POINTS });
    const { items } = await get(address, signal);
    const count = (state) => items.filter((one) => one.state === state).length;
    const counts = { pending: count("pending"), failed: count("failed") };
    if (asked === "0") return { series: [{ name: "all", items }], hidden: 0, ...counts };
    const depth = await this.depthOf(asked);
    const done = items.filter((one) => one.state === "done");
    const modules = await Promise.all(done.map((one) => this.modulesOf(one.step, depth)));
    const last = modules.at(-1) ?? new Map();
    const largest = [...last.values()].toSorted((a, b) => b.elements - a.elements);
    const series = largest.slice(0, MODULES).map(({ module }) => ({
      name: module,
      items: done.map((one, i) => {
        const found = modules[i].get(module);
        return { ...one, value: found ? pick(found, metric) : null };
      }),
    }));
    return { series, hidden: largest.length - series.length, ...counts };
  }
}
