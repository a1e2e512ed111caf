"use strict";
// The explorer: it draws what paper/explorer.py put into the page as JSON, and computes nothing but places on the screen.
// Names come from result files: they are set as text and attributes, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const SVG = ["svg", "g", "path", "line", "text", "circle", "polyline"];
const state = { cell: data.cells[0], axis: "model_evaluations", on: new Set(data.on), arm: "", log: false, zoom: false };

// ------------------------------------------------------------------------------------------------ words and elements

function make(name, attributes = {}, ...children) {
  const element = SVG.includes(name) ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined && value !== false) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const look = (colour) => ({ class: colour === "#000000" ? "look black" : "look", style: `--colour:${colour}` });
const percent = (share) => (100 * share).toFixed(1);
const number = (x) => (x >= 1000 ? Math.round(x).toLocaleString("en-US") : x >= 100 ? x.toFixed(0) : String(Number(x.toPrecision(3))));
const kept = (arm) => `${percent(arm.kept[0])} %` + (arm.kept[1] === null ? "" : ` [${percent(arm.kept[1])}, ${percent(arm.kept[2])}]`);
const cost = (arm, axis) => number(arm.cost[axis][0]);
const words = (arm) => [
  arm.arm, `${arm.family}`, `return kept: ${kept(arm)}`, `${data.axes[state.axis]}: ${cost(arm, state.axis)}`,
  `${arm.episodes.length} episodes, ${arm.episodes.filter((one) => one[3]).length} failed`, arm.verdict];

function ticks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((multiple) => multiple * power >= raw);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9); i++) found.push(Number((i * step).toPrecision(10)));
  return found;
}

function tip(element, lines) {
  const show = () => {
    const box = element.getBoundingClientRect(), tip = at("tip");
    tip.textContent = lines.join("\n");
    tip.hidden = false;
    const left = Math.min(box.right + 10, document.documentElement.clientWidth - tip.offsetWidth - 8);
    tip.style.left = `${Math.max(8, left) + window.scrollX}px`;
    tip.style.top = `${box.bottom + 8 + window.scrollY}px`;
  };
  const hide = () => { at("tip").hidden = true; };
  for (const event of ["mouseenter", "focus"]) element.addEventListener(event, show);
  for (const event of ["mouseleave", "blur"]) element.addEventListener(event, hide);
  element.setAttribute("aria-label", lines.join(", "));
}

// ------------------------------------------------------------------------------------------------------------ drawing

const shown = () => state.cell.arms.filter((arm) => state.on.has(arm.family) && arm.cost[state.axis] && arm.kept)
  .sort((a, b) => a.cost[state.axis][0] - b.cost[state.axis][0] || a.kept[0] - b.kept[0]);

function horizontal(values, left, right) { // place of a cost, and its ticks; on a logarithmic axis nothing is at the left
  const most = Math.max(...values, 1e-9), paid = values.filter((value) => value > 0);
  if (!state.log || !paid.length) return { place: (x) => left + ((right - left) * x) / (1.04 * most), ticks: ticks(0, 1.04 * most, 5) };
  const free = values.includes(0) ? 26 : 0, low = Math.log10(Math.min(...paid) / 1.4), high = Math.log10(most * 1.4);
  const place = (x) => (x > 0 ? left + free + ((right - left - free) * (Math.log10(x) - low)) / (high - low) : left + 8);
  const powers = [];
  for (let i = Math.ceil(low); i <= high; i++) powers.push(Number((10 ** i).toPrecision(6)));
  return { place, ticks: free ? [0, ...powers] : powers };
}

function chart() {
  const arms = shown(), width = Math.max(280, at("chart").clientWidth), height = width < 560 ? 360 : 460;
  const [left, right, top, bottom] = [44, width - 14, 14, height - 46];
  const svg = make("svg", { width, height, role: "group", "aria-label": `Return kept against ${data.axes[state.axis]}, ${state.cell.title}` });
  const ends = arms.flatMap((arm) => arm.kept.filter((end) => end !== null));
  const high = Math.max(1.06, 1.02 * Math.max(...ends, 1)), low = state.zoom ? Math.min(0.99, Math.floor(20 * Math.min(...ends, 1)) / 20) : 0;
  const x = horizontal(arms.map((arm) => arm.cost[state.axis][0]), left, right);
  const y = (share) => bottom - ((bottom - top) * (share - low)) / (high - low);
  for (const tick of ticks(low, high, 6)) svg.append(
    make("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
    make("text", { class: "muted", x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, number(100 * tick)));
  for (const tick of x.ticks) svg.append(
    make("line", { class: "axis", x1: x.place(tick), x2: x.place(tick), y1: bottom, y2: bottom + 4 }),
    make("text", { class: "muted", x: x.place(tick), y: bottom + 18, "text-anchor": "middle" }, number(tick)));
  svg.append(
    make("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    make("line", { class: "reference", x1: left, x2: right, y1: y(1), y2: y(1) }),
    make("text", { x: (left + right) / 2, y: height - 6, "text-anchor": "middle" }, data.axes[state.axis]),
    make("text", { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" },
      `Return kept (%)${low ? `, from ${number(100 * low)}` : ""}`));
  const steady = arms.filter((arm) => arm.line), places = steady.map((arm) => `${x.place(arm.cost[state.axis][0])},${y(arm.kept[0])}`);
  if (new Set(steady.map((arm) => arm.cost[state.axis][0])).size > 1)
    svg.append(make("g", look("#000000"), make("polyline", { class: "joined", points: places.join(" ") })));
  const active = arms.find((arm) => arm.arm === state.arm) || arms[0];
  const marks = arms.map((arm) => mark(arm, x.place, y, arm === active));
  svg.append(...marks, ...labels(arms, x.place, y, { left, right, top, bottom }));
  svg.addEventListener("keydown", (event) => {
    const here = marks.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (here < 0) return;
    if (event.key === "Enter" || event.key === " ") choose(arms[here].arm);
    else if (step) marks[(here + step + marks.length) % marks.length].focus();
    else return;
    event.preventDefault();
  });
  const focused = at("chart").contains(document.activeElement);
  at("chart").replaceChildren(svg);
  if (focused) marks[arms.indexOf(active)]?.focus();
  if (!arms.length) at("chart").replaceChildren(make("p", {}, "No arm that is switched on has this cost here. Switch more arms on, or choose another cost."));
  at("said").textContent = `${arms.length} of ${state.cell.arms.length} arms of ${state.cell.title} shown.`;
}

function mark(arm, x, y, active) {
  const { colour, path } = data.families[arm.family], [value, low, high] = arm.cost[state.axis];
  const [cx, cy] = [x(value), y(arm.kept[0])], chosen = arm.arm === state.arm;
  const group = make("g", { role: "button", tabindex: active ? 0 : -1, "aria-pressed": String(chosen), "data-arm": arm.arm, ...look(colour) });
  group.classList.add("mark");
  group.classList.toggle("chosen", chosen);
  if (arm.kept[1] !== null) group.append(make("line", { class: "bar", x1: cx, x2: cx, y1: y(arm.kept[1]), y2: y(arm.kept[2]) }));
  if (low !== null && low < high) group.append(make("line", { class: "bar", x1: x(low), x2: x(high), y1: cy, y2: cy }));
  group.append(make("path", { class: arm.hollow ? "shape hollow" : "shape", d: path, transform: `translate(${cx} ${cy}) scale(5.5)` }));
  group.append(make("circle", { class: "halo", cx, cy, r: 11 }));
  group.addEventListener("click", () => choose(arm.arm));
  tip(group, words(arm));
  return group;
}

function labels(arms, x, y, frame) { // names beside their marks, as far as nothing is covered
  const boxes = arms.map((arm) => { const [a, b] = [x(arm.cost[state.axis][0]), y(arm.kept[0])]; return [a - 7, b - 7, a + 7, b + 7]; });
  const clear = (box) => box[0] >= frame.left + 2 && box[2] <= frame.right && box[1] >= frame.top - 8 && box[3] <= frame.bottom
    && boxes.every((other) => box[0] > other[2] || box[2] < other[0] || box[1] > other[3] || box[3] < other[1]);
  const order = [...arms].sort((a, b) => (b.arm === state.arm) - (a.arm === state.arm) || a.line - b.line || a.kept[0] - b.kept[0]);
  return order.flatMap((arm) => {
    const [cx, cy] = [x(arm.cost[state.axis][0]), y(arm.kept[0])], name = arm.arm.replace(/^budget-/, ""), long = 6.6 * name.length;
    const places = [[cx + 10, cy + 4], [cx - 10 - long, cy + 4], [cx - long / 2, cy + 20], [cx - long / 2, cy - 12], [cx + 8, cy + 17], [cx + 8, cy - 9]];
    const free = places.find(([left, base]) => clear([left, base - 10, left + long, base + 3]));
    if (!free) return [];
    boxes.push([free[0], free[1] - 10, free[0] + long, free[1] + 3]);
    return [make("text", { class: "label", x: free[0], y: free[1] }, name)];
  });
}

function strip(rows, unit, scale, whole) { // values with intervals, one below the other; rows: name, colour, value, note
  const width = Math.max(280, Math.min(560, whole)), side = Math.min(210, 0.44 * width), step = 24, height = rows.length * step + 38;
  const most = 1.04 * Math.max(...rows.flatMap((row) => row.value.map((end) => end ?? 0)));
  const x = (value) => side + ((width - side - 12) * value) / most;
  const svg = make("svg", { width, height, role: "img", "aria-label": rows.map((row) => row.words).join("; ") });
  for (const tick of ticks(0, most, 4)) svg.append(
    make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: 0, y2: height - 36 }),
    make("text", { class: "muted", x: x(tick), y: height - 22, "text-anchor": "middle" }, number(scale * tick)));
  rows.forEach((row, i) => {
    const [value, low, high] = row.value, cy = step * (i + 0.5);
    const group = make("g", look(row.colour),
      make("circle", { class: "shape", cx: x(value), cy, r: 4 }), make("circle", { class: "halo", cx: x(value), cy, r: 11 }));
    if (low !== null) group.prepend(make("line", { class: "bar", x1: x(low), x2: x(high), y1: cy, y2: cy }));
    tip(group, [row.words]);
    svg.append(make("text", { x: side - 9, y: cy + 4, "text-anchor": "end" }, row.name), group);
  });
  svg.append(make("text", { x: (side + width) / 2, y: height - 5, "text-anchor": "middle" }, unit));
  return svg;
}

// ---------------------------------------------------------------------------------------------------- the chosen arm

function detail() {
  const arm = state.cell.arms.find((one) => one.arm === state.arm), place = at("detail");
  if (!arm) return place.replaceChildren(make("h2", {}, "No arm chosen"), make("p", {}, "Choose a mark, or a name in the table below."));
  const failed = arm.episodes.filter((one) => one[3]).length, width = place.clientWidth, { colour } = data.families[arm.family];
  const parts = [
    make("h2", {}, arm.arm),
    make("p", {}, `${arm.family}. It keeps ${kept(arm)} of the reference’s return on ${state.cell.title}: ${arm.verdict}.`),
    make("p", failed ? { class: "bad" } : {}, `${failed} of ${arm.episodes.length} episodes failed: `
      + "they ended early, or returned less than half of the reference’s mean."),
    make("h3", {}, "Every episode, beside the teacher’s from the same start state"), paired(arm, width),
    make("details", {}, make("summary", {}, "Episodes as a table"), make("div", { class: "wide" }, table(
      ["Start state", "Teacher’s return", "Return", ""],
      arm.episodes.map((one) => [one[0], one[1].toFixed(1), one[2].toFixed(1), one[3] ? "failed" : ""]), [0, 1, 2])))];
  const cells = data.cells.map((cell) => [cell, cell.arms.find((one) => one.arm === arm.arm)]).filter(([, one]) => one?.kept);
  if (cells.length > 1) parts.push(make("h3", {}, "The same arm on every teacher"), strip(cells.map(([cell, one]) => (
    { name: cell.title, colour, value: one.kept, words: `${cell.title}: ${kept(one)}, ${one.episodes.length} episodes, ${one.verdict}` })), "Return kept (%)", 100, width));
  for (const film of data.films.filter((one) => one.cell === state.cell.name && one.arms.includes(arm.arm)))
    parts.push(make("h3", {}, "On film"), moving(film), make("p", { class: "note" }, `From left to right: ${film.arms.join(", ")}. The start state is not a reported one.`));
  place.replaceChildren(...parts);
}

function moving(film) {
  if (film.file.endsWith(".mp4")) return make("video", { src: film.file, controls: "", muted: "", playsinline: "", "aria-label": `Film of ${film.arms.join(", ")}` });
  return make("picture", {}, make("source", { srcset: film.file.replace(/gif$/, "png"), media: "(prefers-reduced-motion: reduce)" }),
    make("img", { class: "film", src: film.file, alt: `Film of ${film.arms.join(", ")}, side by side` }));
}

function paired(arm, width) { // a column for each start state, the worst at the left: teacher hollow, arm filled
  const height = 220, [left, right, top, bottom] = [48, width - 8, 26, height - 26], episodes = [...arm.episodes].sort((a, b) => a[2] - b[2]);
  const most = 1.04 * Math.max(...episodes.flatMap((one) => [one[1], one[2]]), 1), least = Math.min(0, ...episodes.flatMap((one) => [one[1], one[2]]));
  const y = (value) => bottom - ((bottom - top) * (value - least)) / (most - least), x = (i) => left + ((right - left) * (i + 0.5)) / episodes.length;
  const size = Math.min(4, 0.4 * (x(1) - x(0))), { colour } = data.families[arm.family];
  const svg = make("svg", { width, height, id: "episodes", role: "img", "aria-label": `${episodes.length} episodes of ${arm.arm}, from the worst; the table below has them` });
  for (const tick of ticks(least, most, 4)) svg.append(make("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
    make("text", { class: "muted", x: left - 7, y: y(tick) + 4, "text-anchor": "end" }, number(tick)));
  episodes.forEach(([seed, teacher, value, failed], i) => {
    const group = make("g", { ...look(colour), "data-seed": seed }, make("line", { class: "bar", x1: x(i), x2: x(i), y1: y(teacher), y2: y(value) }),
      make("g", look("#000000"), make("circle", { class: "shape hollow", cx: x(i), cy: y(teacher), r: size })),
      make("circle", { class: failed ? "shape failed" : "shape", cx: x(i), cy: y(value), r: size }));
    tip(group, [`start state ${seed}`, `teacher ${teacher.toFixed(1)}`, `${arm.arm} ${value.toFixed(1)}`, ...(failed ? ["failed"] : [])]);
    svg.append(group);
  });
  svg.append(make("text", { x: left, y: 13 }, "Return: ○ teacher, ● this arm"),
    make("text", { class: "muted", x: left, y: height - 6 }, "worst episode first"));
  return svg;
}

// ---------------------------------------------------------------------------------------------------------- the rest

function table(heads, rows, numbers) {
  const kind = (i) => (numbers.includes(i) ? { class: "number" } : {});
  return make("table", {}, make("thead", {}, make("tr", {}, ...heads.map((head, i) => make("th", { scope: "col", ...kind(i) }, head)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((value, i) => make("td", kind(i), value instanceof Node ? value : String(value)))))));
}

function drafts() {
  const rows = state.cell.drafts.map((one) => ({ ...one, words: `${one.name}: return ${number(one.value[0])} [${number(one.value[1])}, ${number(one.value[2])}], ${one.episodes} episodes` }));
  at("drafts").replaceChildren(...(rows.length ? [make("h2", {}, "Drafts, on calibration episodes"),
    make("p", {}, "Networks that never plan, beside the planner that taught them. These are other start states than above: do not compare across."),
    strip(rows, "Return", 1, at("drafts").clientWidth)] : []));
}

function families() {
  const here = [...new Set(state.cell.arms.map((arm) => arm.family))];
  const boxes = here.map((name) => {
    const box = make("input", { type: "checkbox", name: "family", value: name }), { colour, path } = data.families[name];
    box.checked = state.on.has(name);
    box.addEventListener("change", () => { state.on[box.checked ? "add" : "delete"](name); draw(); });
    const swatch = make("svg", { width: 14, height: 14, "aria-hidden": "true", ...look(colour) }, make("path", { class: "shape", d: path, transform: "translate(7 7) scale(5)" }));
    return make("label", {}, box, swatch, name);
  });
  const every = here.every((name) => state.on.has(name)), all = make("button", { type: "button" }, every ? "a few" : "all");
  all.addEventListener("click", () => { state.on = new Set(every ? data.on : [...state.on, ...here]); draw(); });
  const focused = document.activeElement, asked = focused?.name === "family" ? focused.value : focused?.parentNode === at("families") ? "" : null;
  at("families").replaceChildren(...boxes, all);
  if (asked !== null) (at("families").querySelector(`input[value=${CSS.escape(asked || "-")}]`) || all).focus();
}

function choose(arm) { state.arm = arm; draw(); }

function draw() {
  const axes = Object.keys(data.axes).filter((axis) => state.cell.arms.some((arm) => arm.cost[axis]));
  if (!axes.includes(state.axis)) state.axis = axes[0];
  at("axis").replaceChildren(...axes.map((axis) => make("option", { value: axis, selected: axis === state.axis && "" }, data.axes[axis])));
  at("tip").hidden = true;
  families();
  chart();
  detail();
  drafts();
  at("table").replaceChildren(table(["Arm", "Family", "Return kept [95 % interval]", data.axes[state.axis], "Episodes", "Failed", "Verdict"], shown().map((arm) => {
    const button = make("button", { type: "button" }, arm.arm);
    button.addEventListener("click", () => { choose(arm.arm); at("detail").focus(); at("detail").scrollIntoView({ block: "nearest" }); });
    return [button, arm.family, kept(arm), cost(arm, state.axis), arm.episodes.length, arm.episodes.filter((one) => one[3]).length, arm.verdict];
  }), [2, 3, 4, 5]));
}

at("cell").append(...data.cells.map((cell) => make("option", { value: cell.name }, cell.title)));
at("cell").addEventListener("change", () => { state.cell = data.cells.find((cell) => cell.name === at("cell").value); draw(); });
at("axis").addEventListener("change", () => { state.axis = at("axis").value; draw(); });
for (const id of ["log", "zoom"]) at(id).addEventListener("change", () => { state[id] = at(id).checked; draw(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") at("tip").hidden = true; });
window.addEventListener("resize", draw);
state.arm = data.cells[0].arms.some((arm) => arm.arm === data.first) ? data.first : "";
draw();
