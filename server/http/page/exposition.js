// Prometheus' text, and its histograms: cumulative counts as [[upper bound, count], …], smallest bound first.

/** {name: [[labels, value], …]}. Values of labels here have no escapes. */
export function parse(text) {
  const samples = {};
  for (const line of text.split("\n")) {
    const [, name, labels, value] = line.match(/^(\w+)(?:\{(.*)\})? (\S+)/) ?? [];
    if (!name) continue;
    const pairs = [...(labels ?? "").matchAll(/(\w+)="([^"]*)"/g)].map(([, key, text]) => [key, text]);
    (samples[name] ??= []).push([Object.fromEntries(pairs), Number(value.replace("+Inf", "Infinity"))]);
  }
  return samples;
}

/** The sum of the samples of that name whose labels are among others these. */
export function sum(samples, name, wanted = {}) {
  return chosen(samples, name, wanted).reduce((total, [, value]) => total + value, 0);
}

export function buckets(samples, name, wanted = {}) {
  const counts = new Map();
  for (const [{ le }, count] of chosen(samples, `${name}_bucket`, wanted)) {
    const bound = le === "+Inf" ? Infinity : Number(le);
    counts.set(bound, (counts.get(bound) ?? 0) + count);
  }
  return [...counts].sort(([a], [b]) => a - b);
}

function chosen(samples, name, wanted) {
  const all = Object.entries(wanted);
  return (samples[name] ?? []).filter(([labels]) => all.every(([key, value]) => labels[key] === value));
}

/** Counts of each bucket by itself between two readings, as [[lower, upper, count], …]. */
export function between(before, after) {
  const old = new Map(before);
  let [lower, below] = [0, 0];
  return after.map(([upper, count]) => {
    const grown = count - (old.get(upper) ?? 0);
    const bucket = [lower, upper, grown - below];
    [lower, below] = [upper, grown];
    return bucket;
  });
}

/** As Prometheus' histogram_quantile: linear inside the bucket, the last bound for what is beyond it. */
export function quantile(q, counts) {
  const total = counts.reduce((sum, [, , count]) => sum + count, 0);
  let rank = q * total;
  for (const [lower, upper, count] of counts) {
    if (count > 0 && rank <= count) return upper === Infinity ? lower : lower + (upper - lower) * (rank / count);
    rank -= count;
  }
  return null;
}
