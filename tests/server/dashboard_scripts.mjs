// Run by test_dashboard.py beside copies of the dashboard's scripts: two answers of /metrics come in, findings go out.
import { readFileSync } from "node:fs";
import { linePath, nearest, niceCeiling, readable, scales } from "./chart.js";
import { NAMES, point, quantile, snapshot } from "./metrics.js";

const [before, after] = JSON.parse(readFileSync(0, "utf8"));
const first = snapshot(before, 100), now = snapshot(after, 110);
const counts = [[1, 10], [2, 20], [4, 40], [Infinity, 40]];
const beyond = [[1, 0], [4, 0], [Infinity, 5]];
const points = [{ timeS: 0, v: 0 }, { timeS: 3, v: null }, { timeS: 5, v: 5 }, { timeS: 40, v: 10 }];
const { x, y } = scales(10, 10, 10);
const line = [{ timeS: 0, v: 0 }, { timeS: 2, v: null }, { timeS: 4, v: 5 }, { timeS: 10, v: 12 }];

console.log(JSON.stringify({
  names: NAMES,
  now,
  point: point([first, now]),
  quantiles: {
    half: quantile([], [[1, 10], [2, 30], [Infinity, 40]], 0.5),
    all: quantile([], counts, 1),
    beyond: quantile([], beyond, 0.5),
    none: quantile(counts, counts, 0.5),
    since: quantile([[1, 10], [2, 20], [4, 20], [Infinity, 20]], counts, 0.5),
  },
  line: linePath(line, "v", { x, y }, 5),
  ceilings: [0, 0.3, 4.1, 1000, 1001].map(niceCeiling),
  readable: [null, 0, 0.01234, 99.5, 1234.6, 12345, 1234567].map(readable),
  nearest: nearest(points, 1, 40, 300).timeS,
}));
