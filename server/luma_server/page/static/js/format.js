/** Numbers as people read them. */

const NONE = "–";
const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const COUNTS = ["", "K", "M", "B", "T"];

function scaled(value, base, units) {
  let power = 0;
  while (Math.abs(value) >= base * 0.9995 && power < units.length - 1) {
    value /= base;
    power += 1;
  }
  return [power === 0 ? String(value) : value.toPrecision(3), units[power]];
}

export function bytes(value) {
  return value === null ? NONE : scaled(value, 1024, UNITS).join(" ");
}

export function count(value) {
  return value === null ? NONE : scaled(value, 1000, COUNTS).join("");
}

export function whole(value) {
  return value === null ? NONE : value.toLocaleString("en");
}

export function number(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e-3 && size < 1e5) return String(Number(value.toPrecision(3)));
  return value.toExponential(2).replace("e+", "e").replace("e-", "e−");
}

export function share(value) {
  if (value === null || value === undefined) return NONE;
  if (value === 0) return "0%";
  const percent = value * 100;
  if (percent < 0.01) return "<0.01%";
  return `${percent < 10 ? percent.toPrecision(2) : percent.toFixed(1)}%`;
}

/** Tick on an axis of shares. */
export function percent(value) {
  return `${Number((value * 100).toPrecision(6))}%`;
}

/** How much smaller `small` is than `large`. */
export function saving(small, large) {
  if (small === null || !large) return NONE;
  const part = 1 - small / large;
  return `${part < 0 ? "+" : "−"}${(Math.abs(part) * 100).toFixed(1)}%`;
}

export function bits(value) {
  return value === null ? NONE : value.toFixed(2);
}

export function time(text) {
  if (!text) return NONE;
  const when = new Date(text);
  if (Number.isNaN(when.getTime())) return text;
  return when.toISOString().slice(0, 16).replace("T", " ");
}

export function plural(value, one, many = `${one}s`) {
  return `${whole(value)} ${value === 1 ? one : many}`;
}

/** Tick on an axis of powers. */
export function power(exponent, base = 10) {
  const raised = [...String(exponent)].map((one) => (one === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[one]));
  return `${base}${raised.join("")}`;
}
