/** Conversions that the server makes. */

import { ask, get, pause, route, token, view } from "../api.js";
import { announce, h, table } from "../dom.js";
import { bytes, share, time } from "../format.js";
import { empty, explain } from "../states.js";

const AGAIN_SECONDS = 2;
const SIGNS = { queued: "…", running: "▶", done: "✓", failed: "⚠", cancelled: "×" };

/** Return what saves a result; a link cannot carry a token, so the page asks for the file then. */
function download(job, fail) {
  const address = route(["jobs", job.id, "result"]);
  const name = `${job.run}-${job.step}.${job.format}.pt`;
  if (!token.get()) return h("a", { href: address, download: name }, "Download");
  const save = async () => {
    try {
      const blob = await (await ask(address)).blob();
      const link = h("a", { href: URL.createObjectURL(blob), download: name });
      link.click();
      URL.revokeObjectURL(link.href);
    } catch (error) {
      fail(error);
    }
  };
  return h("button", { type: "button", onclick: save }, "Download");
}

function progress(job) {
  if (job.state !== "running" || !job.total_bytes) return "–";
  const label = `${job.run}/${job.step}: ${share(job.done_bytes / job.total_bytes)}`;
  return h(
    "span",
    {},
    h("progress", { max: job.total_bytes, value: job.done_bytes, "aria-label": label }),
    ` ${share(job.done_bytes / job.total_bytes)} of ${bytes(job.total_bytes)}`,
  );
}

function actions(job, reload, fail) {
  if (job.state === "queued" || job.state === "running") {
    const cancel = async () => {
      try {
        await ask(route(["jobs", job.id]), { method: "DELETE" });
        announce("Cancelled");
        await reload();
      } catch (error) {
        fail(error);
      }
    };
    return h("button", { type: "button", onclick: cancel }, "Cancel");
  }
  if (job.state === "done" && job.to === null) return download(job, fail);
  return "";
}

function place({ run, step }) {
  return h("a", { href: view(["runs", run, step]) }, `${run}/${step}`);
}

function row(job, reload, fail) {
  const state = h("span", { class: `job ${job.state}` }, `${SIGNS[job.state]} ${job.state}`);
  const error = job.error ? h("p", { class: "bad" }, job.error) : null;
  const what = job.format === "luma" ? `luma (${job.codec})` : job.format;
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, place(job)),
    h("td", {}, state, error),
    h("td", {}, progress(job)),
    h("td", {}, actions(job, reload, fail)),
    h("td", {}, what, job.to ? [" to ", place(job.to)] : null),
    h("td", {}, time(job.created)),
    h("td", {}, time(job.finished)),
  );
}

const noJobs = () =>
  empty(
    "There are no jobs.",
    h("p", {}, h("code", {}, "POST /v1/checkpoints/RUN/STEP/convert"), " begins one."),
  );

const HEAD = ["checkpoint", "state", "progress", "action", "becomes", "asked (UTC)", "ended (UTC)"];

/** Replace what `list` shows, and leave the keyboard where it was. */
function redraw(list, shown) {
  const places = () => [...list.querySelectorAll("a, button, [tabindex]")];
  const at = places().indexOf(document.activeElement);
  list.replaceChildren(shown);
  if (at >= 0) places()[at]?.focus();
}

/** Show all jobs; they are looked at again every moment. */
export async function showJobs(page) {
  const list = h("div");
  const trouble = h("div");
  let known = "";
  const fail = (error, retry = () => {}) => {
    const again = () => {
      trouble.replaceChildren();
      retry();
    };
    trouble.replaceChildren(explain(error, again, "h2"));
  };
  const reload = async () => {
    const { items } = await get(route(["jobs"]), page.signal);
    if (JSON.stringify(items) === known) return;
    known = JSON.stringify(items);
    const rows = items.map((job) => row(job, reload, fail));
    const shown = items.length
      ? h("section", { class: "card" }, table("Jobs", HEAD, rows))
      : noJobs();
    redraw(list, shown);
  };
  const follow = async () => {
    try {
      for (;;) {
        await pause(AGAIN_SECONDS, page.signal);
        if (!document.hidden) await reload();
      }
    } catch (error) {
      if (error.name !== "AbortError") fail(error, follow);
    }
  };
  await reload();
  page.body.replaceChildren(h("h1", {}, "Jobs"), trouble, list);
  follow();
}
