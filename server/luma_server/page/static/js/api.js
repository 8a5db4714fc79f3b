/** Asks the server, and tells apart what can go wrong. */

const KEY = "luma-token";

/** What the server, or its absence, answered. */
export class Failure extends Error {
  constructor(status, code, detail, hint = "") {
    super(detail);
    this.status = status;
    this.code = code;
    this.hint = hint;
  }
}

export const token = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** Return the address of an API route; parts are names, options that are not set are left out. */
export function route(parts, options = {}) {
  const path = parts.map(encodeURIComponent).join("/");
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(options)) {
    if (value !== null && value !== undefined && value !== "") query.append(name, value);
  }
  const text = query.toString();
  return `/v1/${path}${text ? `?${text}` : ""}`;
}

/** Return the address of a view of the page. */
export function view(parts, options = {}) {
  return route(parts, options).slice("/v1".length);
}

async function failure(answer) {
  try {
    const problem = await answer.json();
    return new Failure(answer.status, problem.code, problem.detail, problem.hint);
  } catch {
    return new Failure(answer.status, "", `The server answered with status ${answer.status}.`);
  }
}

/** Return the answer to a request, which has succeeded. */
export async function ask(address, { signal, method = "GET" } = {}) {
  const headers = token.get() ? { Authorization: `Bearer ${token.get()}` } : {};
  let answer;
  try {
    answer = await fetch(address, { method, headers, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure(0, "gone", "Nothing came back from it.", "Is it running?");
  }
  if (!answer.ok) throw await failure(answer);
  return answer;
}

/** Return what a route answers as JSON. */
export async function get(address, signal) {
  const answer = await ask(address, { signal });
  return answer.json();
}

/** Resolve after a while; reject when the view is left. */
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const leave = () => {
      clearTimeout(timer);
      reject(new DOMException("left", "AbortError"));
    };
    const timer = setTimeout(() => {
      signal.removeEventListener("abort", leave);
      resolve();
    }, seconds * 1000);
    signal.addEventListener("abort", leave, { once: true });
  });
}
