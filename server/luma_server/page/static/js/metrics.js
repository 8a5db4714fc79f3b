/** What can be measured of a module, and how it is written. */

import { bits, bytes, number, share, whole } from "./format.js";

/** Name in the API, name for people, how values are written. */
export const METRICS = [
  ["update.rms", "update size (rms)", number],
  ["update.max", "update size (largest)", number],
  ["exp_avg.rms", "first moment (rms)", number],
  ["exp_avg.max", "first moment (largest)", number],
  ["exp_avg.zero_share", "first moment: zero share", share],
  ["exp_avg.saturated_share", "first moment: saturated share", share],
  ["exp_avg_sq.rms", "second moment (rms)", number],
  ["exp_avg_sq.max", "second moment (largest)", number],
  ["exp_avg_sq.zero_share", "second moment: zero share", share],
  ["exp_avg_sq.saturated_share", "second moment: saturated share", share],
  ["nonfinite", "blocks left out, not finite", whole],
  ["bits_per_parameter", "bits per parameter", bits],
  ["state_bytes", "state in memory", bytes],
];

export const MOMENTS = { exp_avg: "First moment", exp_avg_sq: "Second moment" };

/** Return the entry of a metric, the first where there is none of that name. */
export function metricOf(name) {
  return METRICS.find(([known]) => known === name) ?? METRICS[0];
}

/** Return a metric of a module's statistics; `null` where it has none. */
export function pick(stats, metric) {
  const [quantity, field] = metric.split(".");
  if (!field) return stats[metric];
  const summary = quantity === "update" ? stats.update : stats.moments[quantity];
  return summary?.[field] ?? null;
}

/** Return statistics of a parameter, or of all, in the shape that modules have. */
export function asModule(name, stats) {
  const summary = (value, moment) => ({
    ...value,
    zero_share: moment?.zero_share ?? null,
    saturated_share: moment?.saturated_share ?? null,
    scale: moment?.scale ?? null,
    histogram: value.histogram.counts,
  });
  const moments = stats.moments.map((one) => [one.moment, summary(one.value, one)]);
  return {
    module: name,
    parameters: stats.parameters ?? 1,
    elements: stats.elements,
    state_bytes: stats.state_bytes,
    bits_per_parameter: stats.bits_per_parameter,
    nonfinite: stats.nonfinite,
    update: summary(stats.update),
    moments: Object.fromEntries(moments),
  };
}

/** Return how many values of a module's state are NaN or infinite. */
export function wild(stats) {
  const moments = Object.values(stats.moments).reduce((sum, one) => sum + one.nonfinite, 0);
  return moments + stats.update.nonfinite;
}
