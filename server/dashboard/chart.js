// Lines over time as paths of SVG. No page is needed here either.

export const WIDTH = 600, HEIGHT = 160;
const TOP = 8, BOTTOM = 18;

/** The next 1, 2 or 5 times a power of ten. */
export function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((ceiling) => ceiling >= value * (1 - 1e-9));
}

/** A number for people: three digits, with k, M. */
export function readable(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  for (const [size, suffix] of [[1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= 10 * size || (size === 1e6 && Math.abs(value) >= size)) {
      return Number((value / size).toPrecision(3)) + suffix;
    }
  }
  return String(Math.abs(value) >= 100 ? Math.round(value) : Number(value.toPrecision(3)));
}

/** Places a time and a value: the last `spanS` seconds from left to right, 0 at the bottom, `ceiling` at the top. */
export function scales(nowS, spanS, ceiling) {
  return {
    x: (timeS) => WIDTH * (1 - (nowS - timeS) / spanS),
    y: (value) => HEIGHT - BOTTOM - ((HEIGHT - TOP - BOTTOM) * Math.min(value, ceiling)) / ceiling,
  };
}

/** The `d` of a line through `points` (by their `key`); nulls, and times without points, are gaps. */
export function linePath(points, key, { x, y }, gapS = 5) {
  let path = "", lastS = -Infinity;
  for (const point of points) {
    if (point[key] === null) continue;
    const isGap = point.timeS - lastS > gapS;
    path += `${isGap ? "M" : "L"}${x(point.timeS).toFixed(1)},${y(point[key]).toFixed(1)}`;
    if (isGap) path += "h0.1"; // a single point is seen too
    lastS = point.timeS;
  }
  return path;
}

/** The point that is nearest in time to a place between 0 and 1 of the width; undefined without points. */
export function nearest(points, share, nowS, spanS) {
  const timeS = nowS - spanS * (1 - share);
  const distance = (point) => Math.abs(point.timeS - timeS);
  return points.reduce((best, point) => (best && distance(best) <= distance(point) ? best : point), undefined);
}
