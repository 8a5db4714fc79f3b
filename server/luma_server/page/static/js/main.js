/** Chooses the view that the address names, and keeps focus and title with it. */

import { token } from "./api.js";
import { announce, h } from "./dom.js";
import { explain } from "./states.js";
import { showCheckpoint } from "./views/checkpoint.js";
import { showCompare } from "./views/compare.js";
import { showJobs } from "./views/jobs.js";
import { showRun } from "./views/run.js";
import { showRuns } from "./views/runs.js";

const VIEWS = [
  [/^\/runs$/, showRuns],
  [/^\/runs\/([^/]+)$/, showRun],
  [/^\/runs\/([^/]+)\/([^/]+)$/, showCheckpoint],
  [/^\/compare$/, showCompare],
  [/^\/jobs$/, showJobs],
];

const main = document.getElementById("main");
const forget = document.getElementById("forget");
let leaving = new AbortController();

function chosen() {
  for (const [pattern, show] of VIEWS) {
    const match = pattern.exec(location.pathname);
    if (match) return [show, match.slice(1).map(decodeURIComponent)];
  }
  return [showRuns, []];
}

function mark() {
  for (const link of document.querySelectorAll("nav a")) {
    const here = location.pathname.startsWith(link.getAttribute("href"));
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  forget.hidden = !token.get();
}

/** Show the view of the address; `focus` moves keyboards and readers to it. */
async function show({ focus = false } = {}) {
  leaving.abort();
  leaving = new AbortController();
  const { signal } = leaving;
  const body = h("div", { class: "view" }, h("p", { class: "quiet" }, "Loading…"));
  main.replaceChildren(body);
  main.setAttribute("aria-busy", "true");
  mark();
  const [view, names] = chosen();
  const page = { body, signal, go, replace, query: new URLSearchParams(location.search) };
  try {
    await view(page, ...names);
  } catch (error) {
    if (error.name === "AbortError") return;
    body.replaceChildren(explain(error, () => show({ focus: true })));
  }
  if (signal.aborted) return;
  main.removeAttribute("aria-busy");
  const heading = body.querySelector("h1")?.textContent ?? "";
  document.title = heading ? `${heading} – LUMA` : "LUMA";
  announce(heading);
  if (focus) main.focus({ preventScroll: true });
}

/** Go to another view. */
function go(address) {
  history.pushState(null, "", address);
  scrollTo(0, 0);
  show({ focus: true });
}

/** Keep what the view shows in its address, without a new view. */
function replace(address) {
  history.replaceState(null, "", address);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href^='/']");
  const plain = !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey);
  if (event.defaultPrevented || !link || !plain || event.button || link.hasAttribute("download"))
    return;
  event.preventDefault();
  go(link.getAttribute("href"));
});
addEventListener("popstate", () => show({ focus: true }));
forget.addEventListener("click", () => {
  token.forget();
  show({ focus: true });
});
show();
