/** What is shown where there is nothing to show. */

import { token } from "./api.js";
import { field, h } from "./dom.js";

function askForToken(failure, retry, level) {
  const input = h("input", { type: "password", autocomplete: "off", required: true });
  const refused = token.get() !== "";
  const submit = (event) => {
    event.preventDefault();
    token.set(input.value.trim());
    retry();
  };
  return h(
    "section",
    { class: "card state" },
    h(level, {}, "This server wants a token"),
    refused ? h("p", { class: "bad", role: "alert" }, failure.message) : null,
    h("p", { class: "quiet" }, "It is kept in this tab only, until the tab is closed."),
    h(
      "form",
      { class: "line", onsubmit: submit },
      field("Token", input),
      h("button", { type: "submit" }, "Continue"),
    ),
    h("p", { class: "quiet" }, h("code", {}, "luma token create"), " makes one."),
  );
}

const TITLES = {
  gone: "The server does not answer",
  checkpoint_not_found: "There is no such checkpoint",
  forbidden: "This token does not allow that",
  rate_limited: "Too many requests",
  corrupt_checkpoint: "This checkpoint is damaged",
};

/** Return what tells of a failure; `retry` tries again. */
export function explain(failure, retry, level = "h1") {
  if (failure.code === "unauthorized") return askForToken(failure, retry, level);
  const known = failure.status !== undefined;
  if (!known) console.error(failure);
  const text = known ? failure.message : "The page failed; the browser's console tells more.";
  return h(
    "section",
    { class: "card state", role: "alert" },
    h(level, {}, TITLES[failure.code] ?? "That did not work"),
    h("p", {}, text),
    failure.hint ? h("p", { class: "quiet" }, failure.hint) : null,
    h(
      "p",
      { class: "line" },
      h("button", { type: "button", onclick: retry }, "Try again"),
      h("a", { href: "/runs" }, "All runs"),
    ),
  );
}

/** Return what is shown where a list has no entries. */
export function empty(title, ...children) {
  return h("div", { class: "empty" }, h("p", {}, h("strong", {}, title)), children);
}

/** Return what stands where something is still being measured. */
export function waiting(text) {
  return h("p", { class: "quiet waiting", role: "status" }, text);
}

/** Put what `work` returns into `place`, or what went wrong. */
export async function into(place, signal, text, work) {
  place.replaceChildren(waiting(text));
  try {
    const found = await work();
    if (!signal.aborted) place.replaceChildren(...[found].flat());
  } catch (error) {
    if (error.name === "AbortError") return;
    place.replaceChildren(explain(error, () => into(place, signal, text, work), "h2"));
  }
}
