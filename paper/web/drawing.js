"use strict";
// What the explorer draws with: elements, numbers in words, ticks of an axis, tooltips, plots of intervals, tables.
// Names come from result files: they are set as text and attributes, never as markup.

const at = (id) => document.getElementById(id);

const SVG = ["svg", "g", "path", "line", "text", "circle", "polyline"];
function make(name, attributes = {}, ...children) {
  const inside = SVG.includes(name) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml";
  const element = document.createElementNS(inside, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const line = (kind, x1, x2, y1, y2) => make("line", { class: kind, x1, x2, y1, y2 });
const text = (words, x, y, anchor = "middle", kind = "") =>
  make("text", { class: kind, x, y, "text-anchor": anchor }, words);
const label = (words, x, y) => text(words, x - 7, y + 4, "end", "muted"); // of a horizontal line
const dot = (kind, cx, cy, r) => make("circle", { class: kind, cx, cy, r });
const look = (colour) => ({ class: colour === "#000000" ? "look black" : "look", style: `--colour:${colour}` });

function number(x) {
  if (x >= 1000) return Math.round(x).toLocaleString("en-US");
  return x >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(3)));
}
const ends = ([value, low, high], say) => (low === null ? "" : ` [${say(low)}, ${say(high)}]`);

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((multiple) => multiple * power >= raw), found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high; i++) found.push(Number((i * step).toPrecision(10)));
  return found;
}

function showTip(element, lines) { // beside an element
  const box = (element.querySelector(".halo") || element).getBoundingClientRect(), tip = at("tip");
  tip.textContent = lines.join("\n");
  tip.hidden = false;
  const left = Math.min(box.right + 8, document.documentElement.clientWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
  tip.style.top = `${box.bottom + 4 + window.scrollY}px`;
}

function tip(element, lines) { // while the mouse is on an element, or the keyboard; and what a screen reader says
  const keys = element.hasAttribute("tabindex"); // else the keyboard would stop there only because we listen
  const show = () => showTip(element, lines), hide = () => { at("tip").hidden = true; };
  for (const event of ["mouseenter", ...(keys ? ["focus"] : [])]) element.addEventListener(event, show);
  for (const event of ["mouseleave", ...(keys ? ["blur"] : [])]) element.addEventListener(event, hide);
  element.setAttribute("aria-label", lines.join(", "));
}

function strip(rows, unit, scale, space) { // one value with its interval below the other
  const width = Math.max(280, Math.min(560, space)), step = 24, height = rows.length * step + 38;
  const side = Math.min(0.6 * width, 20 + 6.8 * Math.max(...rows.map((row) => row.name.length)));
  const most = 1.04 * Math.max(...rows.flatMap((row) => row.value.map((end) => end ?? 0)));
  const x = (value) => side + ((width - side - 16) * value) / most;
  const svg = make("svg", { width, height, role: "img", "aria-label": rows.map((row) => row.words).join("; ") });
  for (const tick of ticks(0, most, 3))
    svg.append(line("grid", x(tick), x(tick), 0, height - 36), text(number(scale * tick), x(tick), height - 22));
  rows.forEach(({ name, colour, value: [value, low, high], words }, i) => {
    const y = step * (i + 0.5), group = make("g", look(colour));
    if (low !== null) group.append(line("bar", x(low), x(high), y, y));
    group.append(dot("shape", x(value), y, 4), dot("halo", x(value), y, 11));
    tip(group, [words]);
    svg.append(text(name, side - 9, y + 4, "end"), group);
  });
  svg.append(text(unit, (side + width) / 2, height - 5));
  return svg;
}

function table(heads, rows, numbers) {
  const kind = (i) => (numbers.includes(i) ? { class: "number" } : {});
  const head = make("tr", {}, ...heads.map((words, i) => make("th", { scope: "col", ...kind(i) }, words)));
  const body = rows.map((row) => make("tr", {}, ...row.map((value, i) => make("td", kind(i), value))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}
