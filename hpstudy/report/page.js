"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)"), paper = matchMedia("print");
const palette = JSON.parse(document.getElementById("palette").textContent);
const plots = [...document.querySelectorAll(".plot")];
const isNight = () => dark.matches && !paper.matches;

// Figures. Plotly comes compressed, and the page is on screen before it is unpacked.

function draw(plot) {
  let text = document.getElementById((plot.dataset.source ?? plot.id) + "-data").textContent;
  if (isNight()) for (const [light, night] of Object.entries(palette)) text = text.replaceAll(light, night);
  const { data, layout } = JSON.parse(text);
  return Plotly.react(plot, data, layout, { responsive: true, displayModeBar: false }).then(() => fit(plot));
}

function fit(plot) {  // so that print can scale what the screen has drawn
  const { width, height } = plot._fullLayout;
  plot.style.setProperty("--ratio", `${width} / ${height}`);
  for (const svg of plot.querySelectorAll(".main-svg")) svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
}

async function unpack() {
  const packed = document.getElementById("plotly").textContent;
  const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}

async function drawAll() {
  for (const plot of plots) {
    await draw(plot);
    plot.on("plotly_afterplot", () => fit(plot));
    await new Promise((next) => setTimeout(next));  // keeps the page usable meanwhile
  }
  document.documentElement.dataset.drawn = "all";
}

const redraw = () => { if (document.documentElement.dataset.drawn) plots.forEach(draw); };
dark.addEventListener("change", redraw);
paper.addEventListener("change", () => { if (dark.matches) redraw(); });
requestAnimationFrame(() => setTimeout(() => unpack().then(drawAll)));

// Tabs: the figure that #curves shows.

const tabs = [...document.querySelectorAll("[role=tab]")];

function show(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  const plot = document.getElementById("curves"), { title, caption, source } = tab.dataset;
  plot.dataset.source = source;
  plot.setAttribute("aria-label", `${title}. ${caption}`);
  document.getElementById("curves-panel").setAttribute("aria-labelledby", tab.id);
  document.getElementById("curves-caption").textContent = caption;
  tab.closest(".bar").querySelector("h2").textContent = title;
  if (window.Plotly) draw(plot);
}

for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", () => show(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    next.focus();
    show(next);
  });
}

// Copy as TOML.

const copy = document.getElementById("copy-toml");
copy?.addEventListener("click", async () => {
  const toml = document.getElementById("toml");
  try {
    await navigator.clipboard.writeText(toml.textContent);
    copy.textContent = "copied";
  } catch {  // no clipboard for this page: shows the text, selected
    toml.parentElement.open = true;
    getSelection().selectAllChildren(toml);
    copy.textContent = "press Ctrl+C";
  }
  setTimeout(() => { copy.textContent = "copy as TOML"; }, 2500);
});

// Sortable tables. Numbers sort as numbers, and what is missing comes last.

const SIZES = { k: 1e3, M: 1e6, B: 1e9, T: 1e12 };

function sortValue(cell) {
  const text = cell.textContent.trim(), found = /^[~≥]?\s*([+−-]?[\d,.]+(?:e[+-]?\d+)?)([kMBT]?)\b/.exec(text);
  if (text === "-" || text === "") return null;
  if (text === "baseline") return 0;  // its difference to itself
  return found ? Number(found[1].replace("−", "-").replaceAll(",", "")) * (SIZES[found[2]] ?? 1) : text;
}

function compare(a, b) {
  if (a === null || b === null) return 0;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  for (const [column, head] of heads.entries()) {
    head.querySelector("button").addEventListener("click", () => {
      const rising = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", rising ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => [row, sortValue(row.cells[column])]);
      rows.sort(([, a], [, b]) => (a === null) - (b === null) || (rising ? compare(a, b) : compare(b, a)));
      body.append(...rows.map(([row]) => row));
    });
  }
}

// Parallel coordinates, linked with the table of trials: brushes on axes select, pointing highlights.

const parallel = document.getElementById("parallel");
const rows = new Map([...document.querySelectorAll("#trials tbody tr")].map((row) => [row.dataset.run, row]));
const lines = parallel ? [...parallel.querySelectorAll("polyline[data-run]")] : [];
const heights = new Map(lines.map((line) => [line, line.getAttribute("points").split(" ").map((p) => Number(p.split(",")[1]))]));
const brushes = new Map();  // axis -> [top, bottom] in the drawing's units

function select() {
  let kept = 0;
  for (const line of lines) {
    const ys = heights.get(line);
    const inside = [...brushes].every(([axis, [top, bottom]]) => ys[axis] >= top && ys[axis] <= bottom);
    kept += inside;
    line.classList.toggle("dimmed", !inside);
    rows.get(line.dataset.run)?.classList.toggle("dimmed", !inside);
  }
  document.getElementById("clear").hidden = brushes.size === 0;
  document.getElementById("selected").textContent = brushes.size ? `${kept} of ${lines.length} trials selected` : "";
}

function setBrush(grab, range) {
  const axis = Number(grab.dataset.axis);
  parallel.querySelector(`.brush[data-axis="${axis}"]`)?.remove();
  if (range) {
    brushes.set(axis, range);
    const mark = grab.cloneNode();
    mark.setAttribute("class", "brush");
    for (const name of ["tabindex", "role", "aria-label"]) mark.removeAttribute(name);
    mark.setAttribute("y", range[0]);
    mark.setAttribute("height", range[1] - range[0]);
    grab.before(mark);
  } else brushes.delete(axis);
  select();
}

function drawingY(event) {
  return new DOMPoint(event.clientX, event.clientY).matrixTransform(parallel.getScreenCTM().inverse()).y;
}

for (const grab of parallel?.querySelectorAll(".grab") ?? []) {
  const top = Number(grab.getAttribute("y")), bottom = top + Number(grab.getAttribute("height"));
  let start = null;
  grab.addEventListener("pointerdown", (event) => { start = drawingY(event); grab.setPointerCapture(event.pointerId); });
  grab.addEventListener("pointermove", (event) => {
    if (start === null) return;
    const range = [start, drawingY(event)].sort((a, b) => a - b).map((y) => Math.min(Math.max(y, top), bottom));
    if (range[1] - range[0] > 3) setBrush(grab, range);
  });
  grab.addEventListener("pointerup", (event) => {
    if (Math.abs(drawingY(event) - start) <= 3) setBrush(grab, null);  // a click clears the axis
    start = null;
  });
  grab.addEventListener("keydown", (event) => {
    const quarter = (bottom - top) / 4, now = brushes.get(Number(grab.dataset.axis));
    if (event.key === "Escape") setBrush(grab, null);
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    event.preventDefault();
    const first = now ? now[0] + (event.key === "ArrowDown" ? quarter : -quarter) : event.key === "ArrowDown" ? top : bottom - quarter;
    const from = Math.min(Math.max(first, top), bottom - quarter);
    setBrush(grab, [from, from + quarter]);
  });
}

document.getElementById("clear")?.addEventListener("click", () => {
  for (const grab of parallel.querySelectorAll(".grab")) setBrush(grab, null);
});

function highlight(run, on) {
  rows.get(run)?.classList.toggle("hot", on);
  lines.find((line) => line.dataset.run === run)?.classList.toggle("hot", on);
}

for (const element of [...lines, ...rows.values()]) {
  element.addEventListener("pointerenter", () => highlight(element.dataset.run, true));
  element.addEventListener("pointerleave", () => highlight(element.dataset.run, false));
}
