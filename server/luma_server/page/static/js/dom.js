/** Elements from data: text is always text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(
    ...children.flat(Infinity).filter((child) => child !== null && child !== undefined),
  );
  return element;
}

/** Return an HTML element. Attributes: `onclick` listens, `--name` is a CSS variable. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Return an SVG element. */
export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Tell people who do not see the page. */
export function announce(text) {
  document.getElementById("status").textContent = text;
}

let count = 0;

/** Return an id that no other element has. */
export function freshId(prefix) {
  count += 1;
  return `${prefix}-${count}`;
}

/** Return a labelled control. */
export function field(label, control) {
  control.id ||= freshId("field");
  return h("div", { class: "field" }, h("label", { for: control.id }, label), control);
}

/** Return a `select` of `[value, text]` pairs. */
export function select(options, value, onchange) {
  const entries = options.map(([name, text]) =>
    h("option", { value: name, selected: name === value }, text),
  );
  return h("select", { onchange: (event) => onchange(event.target.value) }, entries);
}

/** Return a card with a heading; its body is what follows. */
export function card(title, ...children) {
  const id = freshId("card");
  return h("section", { class: "card", "aria-labelledby": id }, h("h2", { id }, title), children);
}

/** Return a table that scrolls sideways on its own where it is too wide. */
export function table(caption, head, rows, attributes) {
  const cells = head.map((cell) => (cell instanceof Node ? cell : h("th", { scope: "col" }, cell)));
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": caption },
    h(
      "table",
      attributes,
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, cells)),
      h("tbody", {}, rows),
    ),
  );
}

/** Return a number with what it means. */
export function tile(value, label, note) {
  const tail = note ? h("small", {}, note) : null;
  return h("div", { class: "tile" }, h("dt", {}, label), h("dd", {}, value, tail));
}

/** Return tiles side by side. */
export function tiles(...children) {
  return h("dl", { class: "tiles" }, children);
}
