// The page: asks once a second while it is looked at, and draws.
import { HEIGHT, WIDTH, linePath, nearest, niceCeiling, readable, scales } from "./chart.js";
import { QUANTILE_S, point, snapshot } from "./metrics.js";

const SPAN_S = 300, PERIOD_MS = 1000;
const CHARTS = [
  { name: "sequences", lines: { running: "running", waiting: "waiting" } },
  { name: "tokens a second", lines: { generated: "generated", prompt: "of prompts" } },
  { name: "time to the first token, ms", lines: { ttft50: "median", ttft99: "99 of 100" } },
  { name: "time between tokens, ms", lines: { itl50: "median", itl99: "99 of 100" } },
  { name: "KV cache in use, %", lines: { kvUsage: "in use" }, ceiling: 100 },
  { name: "prompt tokens from the prefix cache, %", lines: { hitRate: "cached" }, ceiling: 100 },
];
const COLOURS = ["first", "second"];
const TILES = {
  running: "running",
  waiting: "waiting",
  generated: "tokens a second",
  ttft50: "first token, ms",
  itl50: "between tokens, ms",
  kvUsage: "KV cache, %",
  finished: "requests finished",
  rejected: "refused (busy)",
  preemptions: "preemptions",
};

const history = [], points = [];

function element(parent, tag, className = "", text = "") {
  const isSvg = parent.namespaceURI.endsWith("svg") || tag === "svg";
  const made = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  if (className) made.setAttribute("class", className);
  made.textContent = text;
  return parent.appendChild(made);
}

class Chart {
  constructor(parent, { name, lines, ceiling }) {
    this.lines = lines;
    this.fixedCeiling = ceiling;
    this.hovered = null;
    const figure = element(parent, "figure");
    const caption = element(figure, "figcaption");
    element(caption, "span", "name", name);
    this.legends = Object.values(lines).map((_, i) => element(caption, "span", COLOURS[i]));
    this.svg = element(figure, "svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", name);
    this.grid = [0, 0.5, 1].map(() => [element(this.svg, "path", "grid"), element(this.svg, "text")]);
    this.paths = Object.keys(lines).map((_, i) => element(this.svg, "path", COLOURS[i]));
    this.cursor = element(this.svg, "path", "cursor");
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.hovered = (event.clientX - box.left) / box.width;
      this.draw();
    });
    this.svg.addEventListener("pointerleave", () => {
      this.hovered = null;
      this.draw();
    });
  }

  draw() {
    const last = points.at(-1);
    if (!last) return;
    const keys = Object.keys(this.lines);
    const most = Math.max(...points.flatMap((each) => keys.map((key) => each[key] ?? 0)));
    const ceiling = this.fixedCeiling ?? niceCeiling(most);
    const scale = scales(last.timeS, SPAN_S, ceiling);
    this.grid.forEach(([line, label], i) => {
      const value = (ceiling * i) / 2, y = scale.y(value);
      line.setAttribute("d", `M0,${y}H${WIDTH}`);
      label.setAttribute("x", "4");
      label.setAttribute("y", String(y + (i === 2 ? 11 : -3)));
      label.textContent = readable(value);
    });
    const shown = this.hovered === null ? last : nearest(points, this.hovered, last.timeS, SPAN_S);
    keys.forEach((key, i) => {
      this.paths[i].setAttribute("d", linePath(points, key, scale));
      this.legends[i].textContent = `${this.lines[key]} ${readable(shown[key])}`;
    });
    this.cursor.setAttribute("d", this.hovered === null ? "" : `M${scale.x(shown.timeS)},0V${HEIGHT}`);
  }
}

const tiles = {};
for (const [key, name] of Object.entries(TILES)) {
  const tile = element(document.getElementById("tiles"), "div", "tile");
  tiles[key] = element(tile, "div", "value", "-");
  element(tile, "div", "name", name);
}
const charts = CHARTS.map((chart) => new Chart(document.getElementById("charts"), chart));

function say(text, isBad = false) {
  const status = document.getElementById("status");
  status.textContent = text;
  status.className = isBad ? "bad" : "";
}

async function look() {
  const response = await fetch("/metrics", { cache: "no-store" });
  if (!response.ok) throw new Error(`/metrics answers ${response.status}`);
  const timeS = performance.now() / 1000;
  const now = snapshot(await response.text(), timeS);
  history.push(now);
  while (history[0].timeS < timeS - QUANTILE_S - 5) history.shift();
  points.push(point(history));
  while (points[0].timeS < timeS - SPAN_S) points.shift();
  document.getElementById("model").textContent = now.model;
  for (const key of Object.keys(TILES)) tiles[key].textContent = readable(points.at(-1)[key] ?? now[key]);
  charts.forEach((chart) => chart.draw());
  say(`${new Date().toLocaleTimeString()}: rates of 3 seconds, quantiles of ${QUANTILE_S}`);
}

async function run() {
  for (;;) {
    if (!document.hidden) {
      await look().catch((error) => say(`no numbers: ${error.message}`, true));
    }
    await new Promise((resolve) => setTimeout(resolve, PERIOD_MS));
  }
}
run();
