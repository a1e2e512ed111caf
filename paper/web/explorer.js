"use strict";
// The explorer draws what paper/explorer.py put into the page as JSON; it computes nothing but places on the screen.
// One function for each part of the page draws it anew from `state`; drawing.js has what they draw with.

const data = JSON.parse(at("data").textContent);
const start = data.cells.find((cell) => cell.name === data.cell);
const state = { cell: start, axis: "", hand: new Map(), arm: data.first, log: false, zoom: false };
// Families are on as they were switched by hand, else a few, and on an axis those whose arms have that cost alone.
const isOn = (family) => state.hand.get(family) ?? (data.on.includes(family) || state.cell.arms.some(
  (arm) => arm.family === family && arm.kept && arm.cost[state.axis] && Object.keys(arm.cost).length === 1));

const percent = (share) => (100 * share).toFixed(1);
const kept = (arm) => `${percent(arm.kept[0])} %${ends(arm.kept, percent)}`;
const cost = (arm) => arm.cost[state.axis][0];
const failures = (arm) => arm.episodes.filter((one) => one[3]).length;
const about = (arm) => [
  arm.arm, arm.family, `return kept: ${kept(arm)}`, `${data.axes[state.axis]}: ${number(cost(arm))}`,
  `${arm.episodes.length} episodes, ${failures(arm)} failed`, arm.verdict,
];

// ---------------------------------------------------------------------------------------------------------- the chart

const shown = () => state.cell.arms
  .filter((arm) => isOn(arm.family) && arm.cost[state.axis] && arm.kept)
  .sort((a, b) => cost(a) - cost(b) || a.kept[0] - b.kept[0]);

function horizontal(values, left, right) { // where a cost is, and the ticks; what is free has no place on a log axis
  const most = 1.04 * Math.max(...values, 1e-9), paid = values.filter((value) => value > 0);
  if (!state.log || !paid.length) return { place: (x) => left + ((right - left) * x) / most, ticks: ticks(0, most, 5) };
  const from = left + (values.includes(0) ? 26 : 0), powers = values.includes(0) ? [0] : [];
  const low = Math.log10(Math.min(...paid) / 1.4), high = Math.log10(most * 1.3);
  for (let i = Math.ceil(low); i <= high; i++) powers.push(Number((10 ** i).toPrecision(6)));
  const place = (x) => (x > 0 ? from + ((right - from) * (Math.log10(x) - low)) / (high - low) : left + 8);
  return { place, ticks: powers };
}

function chart() {
  const arms = shown(), width = Math.max(280, at("chart").clientWidth), height = width < 560 ? 360 : 460;
  at("said").textContent = `${arms.length} of ${state.cell.arms.length} arms of ${state.cell.title} shown.`;
  if (!arms.length) {
    const words = "No arm that is switched on has this cost here. Switch more on, or choose another cost.";
    return at("chart").replaceChildren(make("p", {}, words));
  }
  const [left, right, top, bottom] = [46, width - 14, 14, height - 46], all = arms.flatMap((arm) => arm.kept);
  const high = Math.max(1.06, 1.02 * Math.max(...all));
  const low = state.zoom ? Math.min(0.95, Math.floor(20 * Math.min(...all)) / 20) : Math.min(0, ...all);
  const x = horizontal(arms.map(cost), left, right);
  const y = (share) => bottom - ((bottom - top) * (share - low)) / (high - low);
  const name = `Return kept against ${data.axes[state.axis]}, ${state.cell.title}`;
  const svg = make("svg", { width, height, role: "group", "aria-label": name });
  for (const tick of ticks(low, high, 6))
    svg.append(line("grid", left, right, y(tick), y(tick)), label(number(100 * tick), left, y(tick)));
  for (const tick of x.ticks) {
    svg.append(line("axis", x.place(tick), x.place(tick), bottom, bottom + 4));
    svg.append(text(number(tick), x.place(tick), bottom + 18, "middle", "muted"));
  }
  const side = text(`Return kept (%)${state.zoom ? `, axis from ${number(100 * low)}` : ""}`, 0, 0);
  side.setAttribute("transform", `translate(12 ${(top + bottom) / 2}) rotate(-90)`);
  svg.append(line("axis", left, right, bottom, bottom), line("reference", left, right, y(1), y(1)), side);
  svg.append(text(data.axes[state.axis] + (state.log ? ", logarithmic" : ""), (left + right) / 2, height - 6));

  const steady = arms.filter((arm) => arm.line);
  const points = steady.map((arm) => `${x.place(cost(arm))},${y(arm.kept[0])}`);
  if (new Set(steady.map(cost)).size > 1)
    svg.append(make("g", look("#000000"), make("polyline", { class: "joined", points: points.join(" ") })));
  const active = Math.max(0, arms.findIndex((arm) => arm.arm === state.arm));
  const marks = arms.map((arm, i) => mark(arm, x.place, y, i === active));
  for (const under of [true, false]) svg.append(...marks.filter((_, i) => arms[i].line === under)); // a line is below
  svg.append(...labels(arms, x.place, y, [left, top, right, bottom]));
  svg.addEventListener("keydown", (event) => {
    const here = marks.indexOf(document.activeElement);
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") choose(arms[here].arm);
    else if (step) marks[(here + step + marks.length) % marks.length].focus();
    else return;
    event.preventDefault();
  });
  const nearest = (event) => { // of marks that lie on each other the one whose middle was meant
    const box = svg.getBoundingClientRect();
    const [across, down] = [event.clientX - box.left, event.clientY - box.top];
    const far = arms.map((arm) => Math.hypot(x.place(cost(arm)) - across, y(arm.kept[0]) - down));
    const least = Math.min(...far);
    return least < 16 ? far.indexOf(least) : -1;
  };
  svg.addEventListener("click", (event) => { if (nearest(event) >= 0) choose(arms[nearest(event)].arm); });
  svg.addEventListener("mousemove", (event) => {
    if (nearest(event) >= 0) showTip(marks[nearest(event)], about(arms[nearest(event)]));
    else at("tip").hidden = true;
  });
  svg.addEventListener("mouseleave", () => { at("tip").hidden = true; });
  const focused = at("chart").contains(document.activeElement);
  at("chart").replaceChildren(svg);
  if (focused) marks[active].focus();
}

function mark(arm, x, y, active) {
  const { colour, path } = data.families[arm.family], [value, low, high] = arm.cost[state.axis];
  const [cx, cy] = [x(value), y(arm.kept[0])], chosen = arm.arm === state.arm;
  const group = make("g", { ...look(colour), role: "button", tabindex: active ? 0 : -1, "aria-pressed": chosen });
  group.dataset.arm = arm.arm;
  group.classList.add("mark", ...(chosen ? ["chosen"] : []));
  if (arm.kept[1] !== null) group.append(line("bar", cx, cx, y(arm.kept[1]), y(arm.kept[2])));
  if (low !== null) group.append(line("bar", x(low), x(high), cy, cy));
  const kind = arm.hollow ? "shape hollow" : "shape", transform = `translate(${cx} ${cy}) scale(5.5)`;
  group.append(make("path", { class: kind, d: path, transform }), dot("halo", cx, cy, 11));
  tip(group, about(arm));
  return group;
}

function labels(arms, x, y, [left, top, right, bottom]) { // beside their marks, as far as nothing is covered
  const taken = arms.map((arm) => [x(cost(arm)) - 7, y(arm.kept[0]) - 7, x(cost(arm)) + 7, y(arm.kept[0]) + 7]);
  const clear = ([a, b, c, d]) => a > left && c <= right && b >= top - 8 && d <= bottom
    && taken.every(([e, f, g, h]) => a > g || c < e || b > h || d < f);
  const first = (arm) => [arm.arm !== state.arm, arm.line, arm.kept[0]].map(Number); // the worst before the best
  const order = [...arms].sort((a, b) => first(a).map((value, i) => value - first(b)[i]).find(Boolean) || 0);
  return order.flatMap((arm) => {
    const [cx, cy] = [x(cost(arm)), y(arm.kept[0])], name = arm.arm.replace(/^budget-/, ""), long = 6.6 * name.length;
    const places = [[10, 4], [-10 - long, 4], [-long / 2, 20], [-long / 2, -12], [8, 17], [8, -9]]
      .map(([across, down]) => [cx + across, cy + down - 10, cx + across + long, cy + down + 3]);
    const free = places.find(clear);
    if (!free) return [];
    taken.push(free);
    return [text(name, free[0], free[3] - 3, "start", "label")];
  });
}

// -------------------------------------------------------------------------------------------------- the chosen arm

function detail() {
  const arm = state.cell.arms.find((one) => one.arm === state.arm), place = at("detail");
  if (!arm) {
    const words = [`${state.arm} was not played with this teacher.`, "Choose a mark, or a name in the table."];
    return place.replaceChildren(...words.map((sentence) => make("p", {}, sentence)));
  }
  const { colour } = data.families[arm.family], failed = failures(arm), many = arm.episodes.length;
  const width = Math.max(240, place.clientWidth);
  const fixed = ([seed, beside, value, bad]) => [seed, beside.toFixed(1), value.toFixed(1), bad ? "failed" : ""];
  const parts = [
    make("h2", {}, arm.arm),
    make("p", {}, `${arm.family[0].toUpperCase()}${arm.family.slice(1)}. On ${state.cell.title} it keeps ${kept(arm)} `
      + `of the return of ${arm.beside}: ${arm.verdict}.`),
    make("p", failed ? { class: "bad" } : {}, `${failed || "None"} of ${many} episodes failed, that is, ended early or `
      + `returned less than half of the mean of ${arm.beside}.`),
    make("h3", {}, `Every episode, with that of ${arm.beside} from the same start state`), paired(arm, width),
    make("details", {}, make("summary", {}, "Episodes as a table"), make("div", { class: "wide" },
      table(["Start state", `Return of ${arm.beside}`, "Return", ""], arm.episodes.map(fixed), [0, 1, 2]))),
  ];
  const everywhere = data.cells.flatMap((cell) => cell.arms.filter((one) => one.arm === arm.arm && one.kept)
    .map((one) => [cell.title, one.kept, `${cell.title}: ${kept(one)}, ${one.verdict}`]))
    .map(([name, value, words]) => ({ name, colour, value, words }));
  if (everywhere.length > 1)
    parts.push(make("h3", {}, "The same arm on every teacher"), strip(everywhere, "Return kept (%)", 100, width));
  const shows = (film) => film.cell === state.cell.name && film.panels.some((panel) => panel.arm === arm.arm);
  for (const film of data.films.filter(shows))
    parts.push(make("h3", {}, "On film"), ...moving(film));
  place.replaceChildren(...parts);
}

function moving(film) {
  const words = `From left to right: ${film.panels.map((panel) => panel.words).join("; ")}. The start state is not a `
    + "reported one.";
  const note = make("p", { class: "note" }, words), still = film.file.replace(/gif$/, "png");
  if (film.file.endsWith(".mp4")) return [make("video", { src: film.file, controls: "", "aria-label": words }), note];
  const calm = make("source", { srcset: still, media: "(prefers-reduced-motion: reduce)" });
  return [make("picture", {}, calm, make("img", { class: "film", src: film.file, alt: words })), note];
}

const CROSS = "M-1,-1L1,1M-1,1L1,-1"; // told from a dot without its colour
function paired(arm, width) { // a column for each start state, the worst at the left
  const height = 220, [left, right, top, bottom] = [48, width - 8, 26, height - 26];
  const episodes = [...arm.episodes].sort((a, b) => a[2] - b[2]), all = episodes.flatMap((one) => [one[1], one[2]]);
  const most = 1.04 * Math.max(...all, 1e-9), least = Math.min(0, ...all), wide = (right - left) / episodes.length;
  const y = (value) => bottom - ((bottom - top) * (value - least)) / (most - least), size = Math.min(4, 0.4 * wide);
  const { colour } = data.families[arm.family], name = `${episodes.length} episodes of ${arm.arm}; the table has them`;
  const svg = make("svg", { width, height, id: "episodes", role: "img", "aria-label": name });
  for (const tick of ticks(least, most, 4))
    svg.append(line("grid", left, right, y(tick), y(tick)), label(number(tick), left, y(tick)));
  episodes.forEach(([seed, beside, value, failed], i) => {
    const x = left + wide * (i + 0.5);
    const group = make("g", look(colour), line("bar", x, x, y(beside), y(value)),
      make("g", look("#000000"), dot("shape hollow", x, y(beside), size)),
      failed ? make("path", { class: "failed", d: CROSS, transform: `translate(${x} ${y(value)}) scale(${size})` })
        : dot("shape", x, y(value), size));
    group.dataset.seed = seed;
    const words = [`start state ${seed}`, `${arm.beside}: ${beside.toFixed(1)}`, `${arm.arm}: ${value.toFixed(1)}`];
    tip(group, failed ? [...words, "failed"] : words);
    svg.append(group);
  });
  svg.append(text(`Return: ○ ${arm.beside}, ● this arm${failures(arm) ? ", ✕ failed" : ""}`, left, 13, "start"));
  svg.append(text("worst episode first", left, height - 6, "start", "muted"));
  return svg;
}

// ---------------------------------------------------------------------------------------------------------- the rest

function drafts() {
  const rows = state.cell.drafts.map((one) => ({ ...one, words:
    `${one.name}: return ${number(one.value[0])}${ends(one.value, number)}, ${one.episodes} calibration episodes` }));
  const words = "Networks that never plan, beside the planner that taught them, from other start states than above: "
    + "returns here and there are not to be compared.";
  if (!rows.length) return at("drafts").replaceChildren();
  const drawn = strip(rows, "Return", 1, at("drafts").clientWidth);
  at("drafts").replaceChildren(make("h2", {}, "Drafts, on calibration episodes"), make("p", {}, words), drawn);
}

function arms() { // those of the chart, as a table
  const heads = ["Arm", "Family", "Return kept [95 %]", data.axes[state.axis], "Episodes", "Failed", "Verdict"];
  const rows = shown().map((arm) => {
    const button = make("button", { type: "button" }, arm.arm);
    button.addEventListener("click", () => { choose(arm.arm); at("detail").focus(); });
    return [button, arm.family, kept(arm), number(cost(arm)), arm.episodes.length, failures(arm), arm.verdict];
  });
  at("table").replaceChildren(table(heads, rows, [2, 3, 4, 5]));
}

function families() {
  const here = [...new Set(state.cell.arms.map((arm) => arm.family))], every = here.every(isOn);
  const held = document.activeElement, again = at("families").contains(held) ? held.value : null;
  const boxes = here.map((name) => {
    const box = make("input", { type: "checkbox", value: name }), { colour, path } = data.families[name];
    box.checked = isOn(name);
    box.addEventListener("change", () => { state.hand.set(name, box.checked); draw(); });
    const shape = make("path", { class: "shape", d: path, transform: "translate(7 7) scale(5)" });
    const swatch = make("svg", { width: 14, height: 14, "aria-hidden": "true", ...look(colour) }, shape);
    return make("label", {}, box, swatch, name);
  });
  const all = make("button", { type: "button", value: "" }, every ? "only a few" : "all");
  all.addEventListener("click", () => {
    if (every) state.hand.clear();
    else for (const name of here) state.hand.set(name, true);
    draw();
  });
  at("families").replaceChildren(...boxes, all);
  if (again !== null) [...boxes.map((label) => label.firstChild), all].find((one) => one.value === again)?.focus();
}

const choose = (arm) => { state.arm = arm; draw(); };
function draw() {
  const axes = Object.keys(data.axes).filter((axis) => state.cell.arms.some((arm) => arm.cost[axis]));
  if (!axes.includes(state.axis)) state.axis = axes[0];
  at("axis").replaceChildren(...axes.map((axis) => make("option", { value: axis }, data.axes[axis])));
  at("axis").value = state.axis;
  at("tip").hidden = true;
  for (const part of [families, chart, detail, drafts, arms]) part();
}

at("cell").append(...data.cells.map((cell) => make("option", { value: cell.name }, cell.title)));
at("cell").value = state.cell.name;
at("cell").addEventListener("change", () => { state.cell = data.cells[at("cell").selectedIndex]; draw(); });
at("axis").addEventListener("change", () => { state.axis = at("axis").value; draw(); });
for (const id of ["log", "zoom"]) at(id).addEventListener("change", () => { state[id] = at(id).checked; draw(); });
document.addEventListener("keydown", (event) => { if (event.key === "Escape") at("tip").hidden = true; });
window.addEventListener("resize", draw);
draw();
