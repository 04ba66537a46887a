// What /metrics says, as numbers that can be drawn. No page is needed here.

const GAUGES = {
  running: "vllm:num_requests_running",
  waiting: "vllm:num_requests_waiting",
  kvUsage: "vllm:kv_cache_usage_perc",
};
const COUNTERS = {
  generated: "vllm:generation_tokens_total",
  prompt: "vllm:prompt_tokens_total",
  cached: "vllm:prompt_tokens_cached_total",
  preemptions: "vllm:num_preemptions_total",
  rejected: "vllm:admission_rejections_total",
  finished: "vllm:request_success_total",
};
const HISTOGRAMS = {
  ttft: "vllm:time_to_first_token_seconds",
  itl: "vllm:inter_token_latency_seconds",
};

/** The names of all series that the page asks for. */
export const NAMES = [
  ...Object.values(GAUGES),
  ...Object.values(COUNTERS),
  ...Object.values(HISTOGRAMS).map((name) => `${name}_bucket`),
];

/** Seconds over which rates are averaged, and quantiles taken. */
export const RATE_S = 3;
export const QUANTILE_S = 15;

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPES = { n: "\n" };

/** Samples of the Prometheus text format by name: [{labels, value}]. */
export function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    const match = SAMPLE.exec(line);
    if (!match || line.startsWith("#")) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => ESCAPES[c] ?? c);
    }
    if (!samples.has(match[1])) samples.set(match[1], []);
    samples.get(match[1]).push({ labels, value: Number(match[3].replace("Inf", "Infinity")) });
  }
  return samples;
}

/** The numbers of one moment. Counters are summed over their labels; a histogram is [[bound, cumulative count]]. */
export function snapshot(text, timeS) {
  const samples = parse(text);
  const all = (name) => samples.get(name) ?? [];
  const sum = (name) => all(name).reduce((total, sample) => total + sample.value, 0);
  const now = { timeS, model: all(GAUGES.running)[0]?.labels.model_name ?? "" };
  for (const [key, name] of Object.entries({ ...GAUGES, ...COUNTERS })) now[key] = sum(name);
  for (const [key, name] of Object.entries(HISTOGRAMS)) {
    const bound = ({ labels }) => Number(labels.le.replace("Inf", "Infinity"));
    const buckets = all(`${name}_bucket`).map((sample) => [bound(sample), sample.value]);
    now[key] = buckets.sort((a, b) => a[0] - b[0]);
  }
  return now;
}

/** The q-quantile of what a histogram counted between two moments, linear inside a bucket; null where nothing was. */
export function quantile(before, now, q) {
  const earlier = new Map(before);
  const counts = now.map(([bound, count]) => [bound, count - (earlier.get(bound) ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  let [low, below] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= q * total) {
      if (bound === Infinity) return low;
      return low + ((bound - low) * (q * total - below)) / (count - below);
    }
    [low, below] = [bound, count];
  }
  return null;
}

/** The newest of `history` that is at least `ageS` older than its last, or its first. */
function back(history, ageS) {
  const newest = history.at(-1);
  return history.findLast((moment) => newest.timeS - moment.timeS >= ageS) ?? history[0];
}

/** What is drawn for the last moment of `history`: rates per second, milliseconds, percentages; null where unknown. */
export function point(history) {
  const now = history.at(-1);
  const recent = back(history, RATE_S), older = back(history, QUANTILE_S);
  const elapsedS = now.timeS - recent.timeS;
  const rate = (key) => (elapsedS > 0 ? Math.max(0, now[key] - recent[key]) / elapsedS : null);
  const ms = (key, q) => {
    const seconds = quantile(older[key], now[key], q);
    return seconds === null ? null : 1000 * seconds;
  };
  const prompts = now.prompt - older.prompt;
  return {
    timeS: now.timeS,
    running: now.running,
    waiting: now.waiting,
    kvUsage: 100 * now.kvUsage,
    generated: rate("generated"),
    prompt: rate("prompt"),
    hitRate: prompts > 0 ? (100 * (now.cached - older.cached)) / prompts : null,
    ttft50: ms("ttft", 0.5),
    ttft99: ms("ttft", 0.99),
    itl50: ms("itl", 0.5),
    itl99: ms("itl", 0.99),
  };
}
