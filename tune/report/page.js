"use strict";
// The report's table and figures, and how they are linked: a trial is identified by its row number.

const { figures, themes, table } = JSON.parse(document.getElementById("data").textContent);
const column = Object.fromEntries(table.columns.map(({ kind }, index) => [kind, index]));
const touched = matchMedia("(pointer: coarse)").matches;
const dark = matchMedia("(prefers-color-scheme: dark)");
const SHOWN_FIRST = 100;

// --- The reader's choices, kept while the page refreshes itself ---

const storageKey = `report ${location.pathname}`;
const chosen = { sort: column.rank, down: false, words: "", rows: SHOWN_FIRST, pinned: null };
try {
  Object.assign(chosen, JSON.parse(sessionStorage.getItem(storageKey)));
} catch { /* a browser may refuse to store anything for local files */ }
if (!(chosen.sort in table.columns)) chosen.sort = column.rank;
if (chosen.pinned >= table.rows.length) chosen.pinned = null;

function keep() {
  try { sessionStorage.setItem(storageKey, JSON.stringify(chosen)); } catch { /* as above */ }
}

// --- The table ---

const DIGITS = { metric: (value) => value.toFixed(3), seconds: (value) => value.toFixed(0) };

function shown(value, kind) {
  if (value === null) return "";
  if (typeof value !== "number") return value;
  return DIGITS[kind]?.(value) ?? String(Number(value.toPrecision(4)));
}

// The texts in which the filter looks for its words, one for each row.
const texts = table.rows.map((row) => row.flatMap((value, index) => {
  if (value === null) return [];
  const { name, kind } = table.columns[index];
  const text = shown(value, kind);
  return kind === "axis" ? [text, `${name}=${text}`] : [text];
}).join(" ").toLowerCase());

function compare(one, other) {
  if (one === null || other === null) return (one === null) - (other === null);
  const sign = chosen.down ? -1 : 1;
  if (typeof one === "number" && typeof other === "number") return sign * (one - other);
  return sign * String(one).localeCompare(String(other), undefined, { numeric: true });
}

// Returns the numbers of the rows that pass the filter, in the order of the table.
function rowOrder() {
  const words = chosen.words.toLowerCase().split(/\s+/).filter(Boolean);
  const passing = [...table.rows.keys()].filter(
    (row) => words.every((word) => texts[row].includes(word)));
  return passing.sort((a, b) =>
    compare(table.rows[a][chosen.sort], table.rows[b][chosen.sort]) || a - b);
}

const box = document.getElementById("trials");
const body = box?.querySelector("tbody");
const more = document.getElementById("more");
const filter = document.getElementById("filter");

function rowOf(number) {
  const row = document.createElement("tr");
  row.dataset.number = number;
  table.rows[number].forEach((value, index) => {
    const { kind } = table.columns[index];
    const cell = row.insertCell();
    let inside = cell;
    if (kind === "trial") {
      inside = cell.appendChild(document.createElement("button"));
      inside.type = "button";
    }
    if (["rank", "count", "metric", "seconds"].includes(kind)) cell.className = "number";
    inside.textContent = shown(value, kind);
  });
  return row;
}

function fill() {
  if (!body) return;
  const numbers = rowOrder();
  body.replaceChildren(...numbers.slice(0, chosen.rows).map(rowOf));
  const left = numbers.length - chosen.rows;
  more.hidden = left <= 0;
  more.textContent = `Show ${Math.min(left, 500).toLocaleString("en")} more`;
  document.getElementById("count").textContent =
    `${numbers.length.toLocaleString("en")} of ${table.rows.length.toLocaleString("en")} trials`;
  box.querySelectorAll("th").forEach((head, index) => {
    if (index === chosen.sort) head.ariaSort = chosen.down ? "descending" : "ascending";
    else head.removeAttribute("aria-sort");
  });
  light(chosen.pinned);
  keep();
}

function pin(number) {
  chosen.pinned = chosen.pinned === number ? null : number;
  light(chosen.pinned);
  keep();
}

// Scrolls the table to a trial's row. Clears the filter and shows more rows if that is needed.
function scrollToRow(number) {
  if (!rowOrder().includes(number)) chosen.words = filter.value = "";
  chosen.rows = Math.max(chosen.rows, rowOrder().indexOf(number) + 1);
  fill();
  const row = body.querySelector(`[data-number="${number}"]`);
  box.scrollTop = row.offsetTop - box.clientHeight / 2;
}

if (body) {
  box.querySelector("thead").addEventListener("click", ({ target }) => {
    const head = target.closest("button")?.parentElement;
    if (!head) return;
    chosen.down = chosen.sort === head.cellIndex && !chosen.down;
    chosen.sort = head.cellIndex;
    fill();
  });
  const numberAt = ({ target }) => Number(target.closest("tr").dataset.number);
  body.addEventListener("click", (event) => pin(numberAt(event)));
  body.addEventListener("mouseover", (event) => light(numberAt(event)));
  body.addEventListener("focusin", (event) => light(numberAt(event)));
  body.addEventListener("mouseleave", () => light(chosen.pinned));
  more.addEventListener("click", () => { chosen.rows += 500; fill(); });
  filter.value = chosen.words;
  filter.addEventListener("input", () => {
    Object.assign(chosen, { words: filter.value, rows: SHOWN_FIRST });
    fill();
  });
}

// --- The figures ---

// Returns the text beside the pointer. Plotly reads tags in it, so we escape them.
function hoverText(number) {
  if (number === null) return "";
  const row = table.rows[number];
  const values = table.columns.flatMap(({ name, kind }, index) => {
    if (kind !== "axis" || row[index] === null) return [];
    // The value of a group of fields contains their names already: alpha=32.
    return [String(row[index]).includes("=") ? row[index] : `${name}=${shown(row[index], kind)}`];
  });
  const error = row[column.error]?.match(/.{1,44}/gsu)?.slice(0, 6) ?? [];
  return [`${row[column.trial]}, ${row[column.state]}`, ...values, ...error]
    .map((line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;")).join("<br>");
}

for (const { data } of Object.values(figures)) {
  for (const trace of data.filter(({ customdata }) => customdata)) {
    trace.text = trace.customdata.map((number, index) =>
      [hoverText(number), trace.text?.[index]].filter(Boolean).join("<br>"));
  }
}

const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: touched ? false : "hover",
  // Plotly's default buttons include one that uploads the figure, so we list ours.
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};
const waiting = new Set(Object.keys(figures));
const inSight = new Set();
let lit = null;

function themed(name, isPaper = false) {
  const { data, layout } = figures[name];
  const { template, shades } = themes[dark.matches && !isPaper ? "dark" : "light"];
  for (const trace of data) if (trace.meta !== undefined) trace.line.color = shades[trace.meta];
  // On a touch screen a finger that slides over a figure scrolls the page, so we turn dragging off.
  return [data, { ...layout, template, ...(touched && { dragmode: false }) }, config];
}

function draw(name) {
  if (!waiting.delete(name)) return;
  const figure = document.getElementById(name);
  Plotly.newPlot(figure, ...themed(name));
  const numberOf = ({ points }) => points[0].customdata;
  figure.on("plotly_hover", (event) => light(numberOf(event) ?? chosen.pinned));
  figure.on("plotly_unhover", () => light(chosen.pinned));
  figure.on("plotly_click", (event) => {
    const number = numberOf(event);
    if (number === undefined || number === null) return;
    if (chosen.pinned !== number) scrollToRow(number);
    pin(number);
  });
  figure.on("plotly_afterplot", () => mark(name));
}

function isDrawn(name) {
  return !waiting.has(name);
}

// --- Highlighting a trial: its row, and its points in the visible figures ---

function light(number) {
  lit = number;
  for (const row of body?.rows ?? []) {
    row.classList.toggle("lit", Number(row.dataset.number) === number);
    row.classList.toggle("pinned", Number(row.dataset.number) === chosen.pinned);
  }
  for (const name of inSight) if (isDrawn(name)) mark(name);
}

function element(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// Draws the highlight over the figure. With Plotly the whole figure would have to be drawn again.
function mark(name) {
  const figure = document.getElementById(name);
  figure.querySelector(":scope > .mark")?.remove();
  const { xaxis, yaxis } = figure._fullLayout;
  if (lit === null || !xaxis || !yaxis) return;
  const across = (value) => xaxis.d2p(value);
  const up = (value) => yaxis.d2p(value);
  const shapes = [];
  for (const { customdata, type, mode, x, y, base } of figure.data) {
    const indices = [];
    customdata?.forEach((number, index) => { if (number === lit) indices.push(index); });
    if (!indices.length) continue;
    if (type === "bar") {
      for (const at of indices) {
        const [left, right] = [across(base[at]), across(base[at] + x[at])];
        const top = up(y[at] - 0.4);
        shapes.push(["rect", { x: left, y: Math.min(top, up(y[at] + 0.4)),
          width: Math.max(right - left, 1), height: Math.abs(up(y[at] + 0.4) - top) }]);
      }
    } else if (mode === "lines") {
      const corners = indices.map((at) => `${across(x[at])},${up(y[at])}`);
      shapes.push(["path", { d: `M${corners.join("L")}` }]);
    } else {
      for (const at of indices) shapes.push(["circle", { cx: across(x[at]), cy: up(y[at]), r: 8 }]);
    }
  }
  if (!shapes.length) return;
  const window = element("svg", { x: xaxis._offset - 9, y: yaxis._offset - 9,
    width: xaxis._length + 18, height: yaxis._length + 18,
    viewBox: `-9 -9 ${xaxis._length + 18} ${yaxis._length + 18}` });
  for (const [kind, attributes] of shapes) {
    window.append(element(kind, { ...attributes, class: "halo" }), element(kind, attributes));
  }
  const layer = element("svg", { class: "mark", "aria-hidden": "true" });
  layer.append(window);
  figure.append(layer);
}

fill();

// --- Plotly, which is in the page as gzip in base64 ---

async function inflated(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent),
    (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

function begin(source) {
  const script = document.createElement("script");
  script.textContent = source;
  document.head.append(script);
  // All figures of hundreds of trials take a second or more, so we draw each when it comes near.
  const observer = new IntersectionObserver((seen) => {
    for (const { target: { id }, isIntersecting } of seen) {
      if (!isIntersecting) inSight.delete(id);
      else {
        inSight.add(id);
        if (isDrawn(id)) mark(id);
        else draw(id);
      }
    }
  }, { rootMargin: "50%" });
  for (const name of waiting) observer.observe(document.getElementById(name));
  dark.addEventListener("change", () => {
    for (const name of Object.keys(figures)) {
      if (isDrawn(name)) Plotly.react(name, ...themed(name));
    }
  });
  // Paper is white and narrower than most screens, so we draw the figures again before printing.
  const redraw = (isPaper) => {
    for (const name of Object.keys(figures)) {
      const [data, layout] = themed(name, isPaper);
      const isHalf = document.getElementById(name).closest(".slices, .losses") !== null;
      const size = isPaper ? { width: isHalf ? 330 : 680 } : { autosize: true };
      Plotly.react(name, data, { ...layout, ...size }, config);
    }
  };
  addEventListener("beforeprint", () => { [...waiting].forEach(draw); redraw(true); });
  addEventListener("afterprint", () => redraw(false));
}

inflated("plotly").then(begin, (error) => {
  for (const name of waiting) {
    document.getElementById(name).textContent =
      `This browser can't unpack the program that draws the figures (${error.message}).`;
  }
});

// --- Copying ---

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", () => {
    const text = document.getElementById(button.dataset.copies);
    getSelection().selectAllChildren(text);
    // If the browser does not allow copying, the text is at least selected.
    navigator.clipboard?.writeText(text.textContent).then(
      () => { button.textContent = "Copied"; }, () => {});
  });
}

// --- Refreshing, while the search runs and nobody uses the page ---

if ("renews" in document.body.dataset) {
  const opened = Date.now();
  let lastInput = 0;
  for (const kind of ["pointermove", "keydown", "wheel", "touchmove"]) {
    addEventListener(kind, () => { lastInput = Date.now(); }, { passive: true });
  }
  setInterval(() => {
    const isDue = Date.now() - opened >= 60_000 && Date.now() - lastInput >= 5_000;
    const isRead = document.visibilityState === "visible" && !getSelection().toString();
    if (isDue && isRead) location.reload();
  }, 1_000);
}
