"use strict";
// The report's table, its figures, and what joins them: a trial is named by its row's number.

const { figures, themes, table } = JSON.parse(document.getElementById("data").textContent);
const column = Object.fromEntries(table.columns.map(({ kind }, index) => [kind, index]));
const touched = matchMedia("(pointer: coarse)").matches;
const dark = matchMedia("(prefers-color-scheme: dark)");
const SHOWN_FIRST = 100;

// --- What a reader chose, kept while the page renews itself ---

const place = `report ${location.pathname}`;
const chosen = { sort: column.rank, down: false, words: "", rows: SHOWN_FIRST, pinned: null };
try {
  Object.assign(chosen, JSON.parse(sessionStorage.getItem(place)));
} catch { /* a browser may keep nothing for files */ }
if (!(chosen.sort in table.columns)) chosen.sort = column.rank;
if (chosen.pinned >= table.rows.length) chosen.pinned = null;

function keep() {
  try { sessionStorage.setItem(place, JSON.stringify(chosen)); } catch { /* as above */ }
}

// --- The table ---

const DIGITS = { metric: (value) => value.toFixed(3), seconds: (value) => value.toFixed(0) };

function shown(value, kind) {
  if (value === null) return "";
  if (typeof value !== "number") return value;
  return DIGITS[kind]?.(value) ?? String(Number(value.toPrecision(4)));
}

// What a filter's words are looked for in.
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

// The numbers of the rows that pass the filter, in the order of the table.
function order() {
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
  const numbers = order();
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

// Brings a trial's row into the table's window, past filter and fold.
function bring(number) {
  if (!order().includes(number)) chosen.words = filter.value = "";
  chosen.rows = Math.max(chosen.rows, order().indexOf(number) + 1);
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

// What stands beside the pointer. Plotly reads tags in it, so they are made harmless.
function told(number) {
  if (number === null) return "";
  const row = table.rows[number];
  const values = table.columns.flatMap(({ name, kind }, index) => {
    if (kind !== "axis" || row[index] === null) return [];
    // The value of a part names its own fields: alpha=32.
    return [String(row[index]).includes("=") ? row[index] : `${name}=${shown(row[index], kind)}`];
  });
  const error = row[column.error]?.match(/.{1,44}/gsu)?.slice(0, 6) ?? [];
  return [`${row[column.trial]}, ${row[column.state]}`, ...values, ...error]
    .map((line) => line.replaceAll("&", "&amp;").replaceAll("<", "&lt;")).join("<br>");
}

for (const { data } of Object.values(figures)) {
  for (const trace of data.filter(({ customdata }) => customdata)) {
    trace.text = trace.customdata.map((number, index) =>
      [told(number), trace.text?.[index]].filter(Boolean).join("<br>"));
  }
}

const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: touched ? false : "hover",
  // Named one by one: Plotly's own choice has a button that uploads the figure.
  modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
};
const waiting = new Set(Object.keys(figures));
const inSight = new Set();
let lit = null;

function themed(name, isPaper = false) {
  const { data, layout } = figures[name];
  const { template, shades } = themes[dark.matches && !isPaper ? "dark" : "light"];
  for (const trace of data) if (trace.meta !== undefined) trace.line.color = shades[trace.meta];
  // A finger that slides over a figure means to scroll the page.
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
    if (chosen.pinned !== number) bring(number);
    pin(number);
  });
  figure.on("plotly_afterplot", () => mark(name));
}

function isDrawn(name) {
  return !waiting.has(name);
}

// --- A trial that is lit: its row, and its points in the figures that are in sight ---

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

// Drawn over the figure: to let Plotly draw it would mean to draw all of the figure again.
function mark(name) {
  const figure = document.getElementById(name);
  figure.querySelector(":scope > .mark")?.remove();
  const { xaxis, yaxis } = figure._fullLayout;
  if (lit === null || !xaxis || !yaxis) return;
  const across = (value) => xaxis.d2p(value);
  const up = (value) => yaxis.d2p(value);
  const parts = [];
  for (const { customdata, type, mode, x, y, base } of figure.data) {
    const places = [];
    customdata?.forEach((number, index) => { if (number === lit) places.push(index); });
    if (!places.length) continue;
    if (type === "bar") {
      for (const at of places) {
        const [left, right] = [across(base[at]), across(base[at] + x[at])];
        const top = up(y[at] - 0.4);
        parts.push(["rect", { x: left, y: Math.min(top, up(y[at] + 0.4)),
          width: Math.max(right - left, 1), height: Math.abs(up(y[at] + 0.4) - top) }]);
      }
    } else if (mode === "lines") {
      const corners = places.map((at) => `${across(x[at])},${up(y[at])}`);
      parts.push(["path", { d: `M${corners.join("L")}` }]);
    } else {
      for (const at of places) parts.push(["circle", { cx: across(x[at]), cy: up(y[at]), r: 8 }]);
    }
  }
  if (!parts.length) return;
  const window = element("svg", { x: xaxis._offset - 9, y: yaxis._offset - 9,
    width: xaxis._length + 18, height: yaxis._length + 18,
    viewBox: `-9 -9 ${xaxis._length + 18} ${yaxis._length + 18}` });
  for (const [kind, attributes] of parts) {
    window.append(element(kind, { ...attributes, class: "halo" }), element(kind, attributes));
  }
  const layer = element("svg", { class: "mark", "aria-hidden": "true" });
  layer.append(window);
  figure.append(layer);
}

fill();

// --- Plotly, which lies in the page as gzip in base64 ---

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
  // Drawn when they come near the window: hundreds of trials take a second or more in all.
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
  // Paper is white, narrower than most screens, and a browser prints the figures as they stand.
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
      `This browser can't unpack what draws the figures (${error.message}).`;
  }
});

// --- Copying ---

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", () => {
    const text = document.getElementById(button.dataset.copies);
    getSelection().selectAllChildren(text);
    // Where the browser does not allow it, the text is selected all the same.
    navigator.clipboard?.writeText(text.textContent).then(
      () => { button.textContent = "Copied"; }, () => {});
  });
}

// --- Renewing, while the search runs and nobody is at work on the page ---

if ("renews" in document.body.dataset) {
  const opened = Date.now();
  let busy = 0;
  for (const kind of ["pointermove", "keydown", "wheel", "touchmove"]) {
    addEventListener(kind, () => { busy = Date.now(); }, { passive: true });
  }
  setInterval(() => {
    const isDue = Date.now() - opened >= 60_000 && Date.now() - busy >= 5_000;
    const isRead = document.visibilityState === "visible" && !getSelection().toString();
    if (isDue && isRead) location.reload();
  }, 1_000);
}
