"use strict";
// Every text enters the page through text nodes, never as markup.
const SVG = "http://www.w3.org/2000/svg";
const data = JSON.parse(document.getElementById("data").textContent);
const sections = {};
const COLOURS = 8;

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}
const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en-US"));
const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)} %`);
const clusterClass = (index) => (Number.isInteger(index) ? `f${index % COLOURS}` : "none");

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function missing(body, what, stage) {
  body.append(h("p", { class: "missing" }, `${what}; make it with `, h("code", {}, data.commands[stage]), "."));
}

function table(heads, rows) {
  const head = h("tr", {}, heads.map((text) => h("th", { scope: "col" }, text)));
  const line = (row) => (row instanceof Node ? row : h("tr", {}, row.map((cell) => (cell instanceof Node ? cell : h("td", {}, cell)))));
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows.map(line))));
}

function definitions(pairs) {
  const shown = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return h("dl", {}, shown.map(([term, value]) => [h("dt", {}, term), h("dd", {}, String(value))]));
}

function picker(text, names, show) {
  const select = h("select", {}, names.map((name, index) => h("option", { value: index }, name)));
  select.addEventListener("change", () => show(Number(select.value)));
  return h("label", {}, text, select);
}
