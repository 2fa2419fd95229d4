"use strict";
// What is drawn and listed here comes as JSON in #data; words become text, never markup.
const { figures, examples } = JSON.parse(document.getElementById("data").textContent);
const FIRST = 8, STEP = 20;

function element(name, kind, text) {
  const made = document.createElement(name);
  if (kind) made.className = kind;
  if (text !== undefined) made.textContent = text;
  return made;
}

// ---- figures

const drawn = new Map();

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function axes(layout) {
  return Object.keys(layout).filter((key) => /^[xy]axis/.test(key));
}

// What a figure draws in ink says so by `meta`.
function inked(place, ink) {
  const traces = figures[place.id].data.flatMap((trace, i) => trace.meta === "ink" ? [i] : []);
  if (traces.length) Plotly.restyle(place, { "marker.color": ink }, traces);
}

function painted(layout) {
  const grid = colour("--grid"), look = { "font.color": colour("--ink"), "modebar.color": colour("--soft") };
  for (const axis of axes(layout)) {
    look[axis + ".gridcolor"] = grid;
    look[axis + ".zerolinecolor"] = grid;
    look[axis + ".linecolor"] = grid;
  }
  return look;
}

function draw(place) {
  const figure = figures[place.id];
  if (drawn.has(place.id) || !window.Plotly) return;
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, dragmode: false,
    margin: { l: 60, r: 20, t: 16, b: 48 }, legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom", itemsizing: "constant" },
    ...figure.layout,
    font: { family: "system-ui, sans-serif", size: 13 }, modebar: { bgcolor: "rgba(0,0,0,0)" },
  };
  for (const axis of new Set(["xaxis", "yaxis", ...axes(layout)])) layout[axis] = { automargin: true, ...layout[axis] };
  const look = painted(layout);
  for (const [key, value] of Object.entries(look)) {
    const [part, name] = key.split(".");
    layout[part][name] = value;
  }
  drawn.set(place.id, layout);
  Plotly.newPlot(place, figure.data, layout, { displaylogo: false, responsive: true,
    modeBarButtons: [["zoom2d", "pan2d", "resetScale2d", "toImage"]] });
  inked(place, colour("--ink"));
}

const seen = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    if (target.matches(".plot")) draw(target);
    else explore(target, examples[target.dataset.examples]);
  }
}, { rootMargin: "600px" });
// Rows can be read while the plotting library, which comes last, is still being taken in.
window.addEventListener("load", () => { for (const place of document.querySelectorAll(".plot")) seen.observe(place); });

for (const menu of document.querySelectorAll("select[data-choices]")) {
  menu.addEventListener("change", () => {
    const key = menu.dataset.choices;
    draw(document.getElementById(key));
    Plotly.restyle(key, figures[key].choices[menu.value]);
  });
}

function repaint() {
  for (const [key, layout] of drawn) {
    Plotly.relayout(key, painted(layout));
    inked(document.getElementById(key), colour("--ink"));
  }
}

// ---- light and dark

const dark = window.matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", repaint);

function remembered(theme) {
  try {
    if (theme) localStorage.setItem("theme", theme);
    return localStorage.getItem("theme");
  } catch { return null; }
}

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  repaint();
}

setTheme(remembered());
document.getElementById("theme").addEventListener("click", () => {
  const now = document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  remembered(next);
  setTheme(next);
});

window.addEventListener("beforeprint", () => {
  for (const run of document.querySelectorAll("details.run")) run.open = true;
  for (const place of document.querySelectorAll(".plot")) if (place.offsetParent) draw(place);
  for (const [key, layout] of drawn) {
    const look = painted(layout);
    for (const name of Object.keys(look)) look[name] = name === "font.color" ? "#000" : "#ddd";
    Plotly.relayout(key, look);
    inked(document.getElementById(key), "#000");
  }
});
window.addEventListener("afterprint", repaint);

// ---- several runs

for (const link of document.querySelectorAll("nav a")) {
  const run = document.querySelector(link.hash)?.closest("details");
  if (run) link.addEventListener("click", () => { run.open = true; });
}

// ---- long tables

for (const table of document.querySelectorAll("table[data-limit]")) {
  const limit = Number(table.dataset.limit), rows = [...table.tBodies[0].rows];
  if (rows.length <= limit + 2) continue;
  for (const row of rows.slice(limit)) row.classList.add("more");
  const button = element("button", "", `show all ${rows.length}`);
  button.type = "button";
  button.addEventListener("click", () => {
    for (const row of rows) row.classList.remove("more");
    button.remove();
  });
  table.parentElement.after(button);
}

// ---- rows to be read

function choice(filters, name, options, changed) {
  const label = element("label", "", name), select = element("select");
  for (const [value, text] of options) {
    const option = element("option", "", text);
    option.value = value;
    select.append(option);
  }
  select.addEventListener("change", changed);
  label.append(select);
  filters.append(label);
  return select;
}

function card(row, texts, names) {
  const [place, score, cluster, period, kept] = row, text = texts[place];
  const card = element("article", "row"), head = element("header"), turns = element("div", "turns");
  head.append(element("span", "score", score.toPrecision(4)), element("span", kept ? "" : "out", kept ? "selected" : "not selected"));
  const id = element("bdi", "soft", text.id), facts = [text.source];
  if (cluster >= 0) facts.push(`cluster ${cluster}`);
  if (names.periods > 1) facts.push(`period ${period}`);
  head.append(id, element("bdi", "soft", facts.join(" · ")));
  for (const [role, content] of text.turns) {
    const turn = element("p", "turn"), words = element("bdi", "", content);
    words.dir = "auto";
    turn.append(element("b", "", role), words);
    turns.append(turn);
  }
  if (text.left_out) turns.append(element("p", "turn note", `${text.left_out.toLocaleString("en")} more characters are not shown`));
  card.append(head, turns);
  return card;
}

function shorten(card) {
  const turns = card.querySelector(".turns");
  if (turns.scrollHeight <= turns.clientHeight + 4) return;
  turns.classList.add("long");
  const button = element("button", "", "show more");
  button.type = "button";
  button.addEventListener("click", () => { turns.classList.add("whole"); button.remove(); });
  card.append(button);
}

function explore(place, { rows, texts }) {
  const filters = element("div", "filters"), state = element("p", "soft"), list = element("div");
  state.setAttribute("aria-live", "polite");
  const more = element("button", "", "show more rows");
  more.type = "button";
  let shown = FIRST, found = rows;
  const lowered = texts.map((text) => [text.id, ...text.turns.map((turn) => turn[1])].join("\n").toLowerCase());
  const distinct = (values) => [...new Set(values)];
  const label = element("label", "find", "search"), find = element("input");
  find.type = "search";
  find.placeholder = "words in the row, or its id";
  label.append(find);
  filters.append(label);
  const all = [["", "all"]], again = () => { shown = FIRST; show(); };
  const periods = distinct(rows.map((row) => row[3])), sources = distinct(texts.map((text) => text.source)).sort();
  const clusters = distinct(rows.map((row) => row[2])).sort((a, b) => a - b);
  const which = choice(filters, "rows", [["1", "selected"], ["0", "scored, not selected"], ["", "all shown"]], again);
  const order = choice(filters, "first", [["-1", "most influential"], ["1", "least influential"]], again);
  const period = choice(filters, "period", all.concat(periods.map((n) => [n, `period ${n}`])), again);
  const source = choice(filters, "source", all.concat(sources.map((name) => [name, name])), again);
  const cluster = choice(filters, "cluster", all.concat(clusters.map((n) => [n, n < 0 ? "none" : `cluster ${n}`])), again);
  period.parentElement.hidden = periods.length < 2;
  cluster.parentElement.hidden = clusters.length < 2;
  find.addEventListener("input", again);
  more.addEventListener("click", () => { shown += STEP; show(); });

  function show() {
    const wanted = find.value.toLowerCase();
    found = rows.filter((row) =>
      (!which.value || row[4] === Number(which.value)) && (!period.value || row[3] === Number(period.value)) &&
      (!source.value || texts[row[0]].source === source.value) &&
      (!cluster.value || row[2] === Number(cluster.value)) && (!wanted || lowered[row[0]].includes(wanted)));
    const sign = Number(order.value);
    found.sort((a, b) => sign * (a[1] - b[1]));
    const cards = found.slice(0, shown).map((row) => card(row, texts, { periods: periods.length }));
    list.replaceChildren(...cards);
    for (const made of cards) shorten(made);
    state.textContent = `${found.length} of ${rows.length} rows` + (found.length > shown ? `, the first ${shown} shown` : "");
    more.hidden = found.length <= shown;
  }

  place.append(filters, state, list, more);
  show();
}

for (const place of document.querySelectorAll(".explorer")) {
  if (place.offsetParent) explore(place, examples[place.dataset.examples]);
  else seen.observe(place);  // in a run that is folded away
}
