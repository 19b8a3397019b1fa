// Making elements. Text only ever becomes a text node; there is no way from a string to markup in this page.

const byId = id => document.getElementById(id);

// h("button", {class: "x", onclick: f}, "text", node, …); attributes that are null or false are left out.
function h(tag, attributes, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function s(tag, attributes, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--") || name === "width%") element.style.setProperty(name === "width%" ? "width" : name, value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

function replace(element, ...children) {
  element.replaceChildren(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
}

// .31, 1.00; a dash where there is nothing.
function short(value, digits = 2) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const text = value.toFixed(digits);
  return Math.abs(value) < 1 ? text.replace(/^(-?)0\./, "$1.").replace(/^-(\.0+)$/, "$1") : text;
}

const percent = value => `${Math.round(value * 100)} %`;

function bytes(count) {
  if (count < 1000) return `${count} B`;
  return count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

// A token as one word: the quotes show its spaces, pictures show its line breaks.
const quoted = text => (text === null || text === undefined ? "?" : `"${text.replaceAll("\n", "⏎").replaceAll("\t", "⇥")}"`);

// A bar for a part of 1 with an optional second part behind it (what is not known) and a tick.
function fill(value, {more = 0, tick = null, source = false, title = null} = {}) {
  const width = v => `${Math.min(100, Math.max(0, v * 100))}%`;
  return h("div", {class: source ? "fill source" : "fill", title},
    more > 0 && h("em", {"width%": width(value + more)}),
    h("i", {"width%": width(value)}),
    tick !== null && ticked(tick, width));
}

function ticked(at, width) {
  const mark = h("b");
  mark.style.left = width(at);
  return mark;
}
