/** Axes of plots: values to pixels, and round values to label. */

import { number, power } from "./format.js";

const STEPS = [1, 2, 2.5, 5, 10];

function linearTicks(low, high, about) {
  const raw = (high - low) / about;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = STEPS.map((one) => one * size).find((one) => one >= raw * 0.999);
  const ticks = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) {
    ticks.push(Number((at * step).toPrecision(12)));
  }
  return ticks;
}

/** Return an axis in proportion; `room` is the margin as a share of the range. */
export function linear(values, { room = 0.06 } = {}) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = high > low ? (high - low) * room : Math.abs(high) * 0.1 || 1;
  const positive = low >= 0;
  low -= room || high === low ? margin : 0;
  high += room || high === low ? margin : 0;
  if (positive && low < 0) low = 0;
  return {
    place: (value) => (value - low) / (high - low),
    ticks: (about) => linearTicks(low, high, about).map((at) => [at, number(at)]),
  };
}

/** Return round values between powers of ten: only powers where there are enough of them. */
function logarithmicTicks(low, high, about) {
  const [first, last] = [Math.ceil(low - 1e-9), Math.floor(high + 1e-9)];
  const step = Math.max(1, Math.ceil((last - first) / about));
  if (last - first >= 2) {
    const found = [];
    for (let at = first; at <= last; at += step) found.push([10 ** at, power(at)]);
    return found;
  }
  const found = [];
  for (let at = Math.floor(low); at <= last; at += 1) {
    found.push(...[1, 2, 5].map((one) => Number((one * 10 ** at).toPrecision(3))));
  }
  const inside = found.filter((value) => Math.log10(value) >= low && Math.log10(value) <= high);
  return inside.map((value) => [value, number(value)]);
}

/** Return an axis in proportion to the logarithm of positive values. */
function logarithmic(values) {
  const logs = values.map(Math.log10);
  let [low, high] = [Math.min(...logs), Math.max(...logs)];
  const margin = Math.max(0.1, (high - low) * 0.05);
  low -= margin;
  high += margin;
  return {
    place: (value) => (Math.log10(value) - low) / (high - low),
    ticks: (about) => logarithmicTicks(low, high, about),
  };
}

/** Return an axis of powers of ten where values are positive and far apart. */
export function fitting(values) {
  const low = Math.min(...values);
  return low > 0 && Math.max(...values) / low > 10 ? logarithmic(values) : linear(values);
}

/** Return an axis over powers of `base` that are given by their exponents. */
export function exponents(low, high, base = 10) {
  const ticks = (about) => {
    const step = Math.max(1, Math.ceil((high - low) / about));
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high; at += step) {
      found.push([at, power(at, base)]);
    }
    return found;
  };
  return { place: (value) => (value - low) / (high - low), ticks };
}
