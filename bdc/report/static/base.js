"use strict";
// Every text enters the page through text nodes and attributes, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const COLOURS = 8;
const sections = {};

window.addEventListener("error", (event) => report(event.message));
window.addEventListener("unhandledrejection", (event) => report(event.reason));

function report(message) {
  const box = document.getElementById("errors");
  box.hidden = false;
  box.append(h("p", {}, `This page met an error: ${message}`));
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== undefined && value !== false)
      node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);
const data = JSON.parse(document.getElementById("data").textContent);

const known = (value) => value !== null && value !== undefined;
const minus = (text) => text.replace("-", "−");
const count = (value) => (known(value) ? value.toLocaleString("en-US") : "–");
const fixed = (value, digits) => (known(value) ? minus(value.toFixed(digits)) : "–");
const percent = (value) => (known(value) ? `${(100 * value).toFixed(1)} %` : "–");
const seconds = (value) => value.toLocaleString("en-US", { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const clusterClass = (index) => (Number.isInteger(index) ? `k${index % COLOURS}` : "k-none");
const clip = (text, length) => (text.length > length ? `${text.slice(0, length - 1).trimEnd()}…` : text);
const sum = (values) => values.reduce((total, value) => total + (value || 0), 0);
const range = (n) => Array.from({ length: n }, (_, index) => index);

function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor((whole % 3600) / 60)];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`;
}

// One CSS variable carries a number from the data into the stylesheet, where the theme turns it into a colour or a width.
function withNumber(node, name, value) {
  node.style.setProperty(name, value);
  return node;
}

function missing(body, what, stage) {
  body.parentNode.dataset.missing = "1";
  body.append(h("p", { class: "notice" }, `${what} This command makes it: `, h("code", {}, data.commands[stage])));
}

const cellOf = (tag, cell) => (cell instanceof Node && /^T[DH]$/.test(cell.tagName) ? cell : h(tag, {}, cell));

// The first cell of each row names the row. The wrapper scrolls by keyboard too.
function table(caption, heads, rows, className) {
  const line = (cells) => cells.map((cell, index) => cellOf(index ? "td" : "th", cell));
  const body = rows.map((row) => (row instanceof Node ? row : h("tr", {}, line(row))));
  for (const row of body) row.firstElementChild.setAttribute("scope", "row");
  const head = heads.map((cell) => cellOf("th", cell));
  for (const cell of head) if (cell.tagName === "TH") cell.setAttribute("scope", "col");
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      { class: className },
      h("caption", {}, caption),
      h("thead", {}, h("tr", {}, head)),
      h("tbody", {}, body),
    ),
  );
}

function definitions(pairs) {
  const shown = pairs.filter(([, value]) => known(value) && value !== "");
  return h(
    "dl",
    {},
    shown.map(([term, value]) => h("div", {}, h("dt", {}, term), h("dd", {}, value))),
  );
}

function picker(label, names, show) {
  const options = names.map((name, index) => h("option", { value: index }, name));
  const select = h("select", { change: () => show(Number(select.value)) }, options);
  return { select, label: h("label", { class: "picker" }, h("span", {}, label), select) };
}

// Radio buttons drawn as one row; `choices` are [value, text].
let choiceGroups = 0;
function choice(legend, choices, value, show) {
  const name = `choice-${choiceGroups++}`;
  const one = ([key, text]) =>
    h(
      "label",
      {},
      h("input", { type: "radio", name, value: key, checked: key === value, change: () => show(key) }),
      h("span", {}, text),
    );
  return h("fieldset", { class: "choice" }, h("legend", {}, legend), choices.map(one));
}

function copyButton(source) {
  const button = h(
    "button",
    {
      type: "button",
      click: async () => {
        try {
          await navigator.clipboard.writeText(source.textContent);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(source);
          button.textContent = "Selected";
        }
        setTimeout(() => (button.textContent = "Copy"), 1500);
      },
    },
    "Copy",
  );
  return button;
}

const copyable = (text) => {
  const code = h("pre", { tabindex: 0 }, text);
  return h("div", { class: "copyable" }, code, copyButton(code));
};
