// The trace: facts as JSON, numbers as columns (geomcli/report/columns.py). Positions are absolute: the prompt's tokens
// first, then the answer's. Token numbers count the answer's tokens from 0.

const facts = JSON.parse(byId("facts").textContent);
const promptLength = facts.promptLength;
const tokenCount = facts.tokens.length;
const end = promptLength + tokenCount;
const columns = new Map();

async function loadColumns() {
  const coded = atob(byId("columns").textContent.trim());
  const packed = new Uint8Array(coded.length);
  for (let i = 0; i < coded.length; i++) packed[i] = coded.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const types = {unit: Uint16Array, u8: Uint8Array, u16: Uint16Array, u32: Uint32Array, f32: Float32Array};
  for (const [name, [type, offset, count]] of Object.entries(facts.columns)) {
    columns.set(name, {type, values: new types[type](buffer, offset, count)});
  }
  for (const layer of facts.layers) starts.set(`${layer}/`, startsOf(`${layer}/count`));
  for (const layer of facts.experts) starts.set(`moe/${layer}/`, startsOf(`moe/${layer}/count`));
}

// The value of a column, null where there is none.
function value(name, index) {
  const column = columns.get(name);
  if (!column || index < 0 || index >= column.values.length) return null;
  const raw = column.values[index];
  if (column.type === "unit") return raw === 65535 ? null : raw / 65534;
  return Number.isNaN(raw) ? null : raw;
}

// For each group of a ragged column, where it starts.
const starts = new Map();
function startsOf(name) {
  const counts = columns.get(name).values;
  const made = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) made[i + 1] = made[i] + counts[i];
  return made;
}

const isSink = position => position < facts.sinks;
const tokenAt = position => (position >= promptLength && position < end ? position - promptLength : -1);
const thinks = token => facts.thinking.some(([from, to]) => token >= from && token < to);

function textAt(position) {
  const token = tokenAt(position);
  return token >= 0 ? facts.tokens[token] : facts.prompt[position];
}

function numbersOf(token) {
  const zone = columns.get("zone").values[token];
  if (zone === undefined || zone === 255) return null;
  const status = columns.get("compass").values[token];
  return {
    zone, confidence: value("confidence", token), drift: value("drift", token), ripple: value("ripple", token),
    sink: value("sink", token), bits: value("bits", token), status: status === 255 ? 0 : status,
    local: value("fp", token * 20), mid: value("fp", token * 20 + 1), long: value("fp", token * 20 + 2),
    entropy: value("fp", token * 20 + 3), histogram: histogram("fp", token),
  };
}

// 16 masses by log-distance; null where there are none.
function histogram(name, token) {
  if (value(name, token * 20 + 4) === null) return null;
  return Array.from({length: 16}, (_, bin) => value(name, token * 20 + 4 + bin) || 0);
}

// Links of a token in a layer, strongest first: {position, p, share, content, rotation}.
function linksOf(token, layer) {
  const from = starts.get(`${layer}/`);
  if (!from || token < 0 || token >= tokenCount) return [];
  const made = [];
  let total = 0;
  for (let i = from[token]; i < from[token + 1]; i++) {
    const p = value(`${layer}/p`, i);
    total += p;
    made.push({
      position: value(`${layer}/position`, i), p, content: value(`${layer}/content`, i), rotation: value(`${layer}/rotation`, i),
    });
  }
  for (const link of made) link.share = total > 0 ? link.p / total : 0;
  return made;
}

// Who looked at a position in a layer: [{token, p}], strongest first. Built once a layer.
const readers = new Map();
function readersOf(position, layer) {
  if (!readers.has(layer)) {
    const byPosition = new Map();
    for (let token = 0; token < tokenCount; token++) {
      for (const {position: to, p} of linksOf(token, layer)) {
        if (!byPosition.has(to)) byPosition.set(to, []);
        byPosition.get(to).push({token, p});
      }
    }
    for (const list of byPosition.values()) list.sort((a, b) => b.p - a.p);
    readers.set(layer, byPosition);
  }
  return readers.get(layer).get(position) || [];
}

// For each position, the attention that it got from later tokens (its own look at itself aside), sum over their links.
const sums = new Map();
function received(layer) {
  if (!sums.has(layer)) {
    const made = new Float32Array(end);
    const [from, positions] = [starts.get(`${layer}/`), columns.get(`${layer}/position`)?.values];
    for (let token = 0; from && token < tokenCount; token++) {
      for (let i = from[token]; i < from[token + 1]; i++) {
        if (positions[i] !== promptLength + token - 1) made[positions[i]] += value(`${layer}/p`, i);
      }
    }
    sums.set(layer, made);
  }
  return sums.get(layer);
}

function expertsOf(token, layer) {
  const from = starts.get(`moe/${layer}/`);
  const made = [];
  for (let i = from[token]; i < from[token + 1]; i++) {
    made.push({expert: value(`moe/${layer}/expert`, i), weight: value(`moe/${layer}/weight`, i)});
  }
  return made;
}

// Every rule's value, threshold and margin, as geomcli/zones.py decides: the largest margin that is not negative.
function evidence(numbers) {
  const values = {local: numbers.local, mid: numbers.mid, long: numbers.long, bin_entropy: numbers.entropy, ripple: numbers.ripple};
  return facts.rules.map(({zone, metric, threshold}) => {
    const found = values[metric];
    return {zone, metric, threshold, value: found, margin: found === null ? null : (found - threshold) / (1 - threshold)};
  });
}

// Where the scale of drift ends: the largest of the answer with some room, thresholds only when they are near.
let scale;
function driftScale() {
  if (scale === undefined) {
    let most = 0;
    for (let token = 0; token < tokenCount; token++) most = Math.max(most, value("drift", token) || 0);
    scale = Math.min(1, Math.max(0.1, Math.ceil(most * 12) / 10));
  }
  return scale;
}

function zoneCounts() {
  const counts = facts.zones.map(() => 0);
  for (const zone of columns.get("zone").values) if (zone < counts.length) counts[zone] += 1;
  return counts;
}

function meanHistogram(name, wanted = () => true) {
  const sum = new Array(16).fill(0);
  let count = 0;
  for (let token = 0; token < tokenCount; token++) {
    const one = wanted(token) ? histogram(name, token) : null;
    if (!one) continue;
    count += 1;
    one.forEach((mass, bin) => { sum[bin] += mass; });
  }
  return count ? sum.map(mass => mass / count) : null;
}
