// Marks on tokens: what the token under the pointer or in the lens looks at, who looks at it, lit sources, overlays.

const marked = new Map();  // element -> class names and properties that this file put there

function mark(position, name, strength = null) {
  const element = nodes[position];
  if (!element) return;
  element.classList.add(name);
  if (strength !== null) element.style.setProperty("--s", strength.toFixed(3));
  if (!marked.has(element)) marked.set(element, new Set());
  marked.get(element).add(name);
}

function unmark() {
  for (const [element, names] of marked) {
    element.classList.remove(...names);
    element.style.removeProperty("--s");
  }
  marked.clear();
}

// A square root: links are few and steep, and the third strongest should still be seen.
const strength = (p, top) => Math.max(0.12, Math.sqrt(p / top));

function repaint() {
  unmark();
  const {hover, pinned, layer} = state;
  lightSources();
  const active = hover ?? pinned;
  if (active !== null && layer !== null) paintLinks(active, layer);
  if (pinned !== null) mark(pinned, "pinned");
  for (const token of found.tokens) mark(promptLength + token, "found");
}

function paintLinks(active, layer) {
  const token = tokenAt(active);
  const links = linksOf(token, layer).filter(({position}) => state.sinks || !isSink(position));
  if (links.length) {
    const top = links[0].p;
    links.forEach(({position, p}, rank) => {
      mark(position, "read", strength(p, top));
      if (rank < 3) mark(position, "most");
    });
  } else if (token < 0) {
    const those = readersOf(active, layer).slice(0, 64);
    for (const {token: by, p} of those) mark(promptLength + by, "reader", strength(p, those[0].p));
  }
}

// The sources of the chosen sentence, filled by their share of what it read; or one source alone.
function lightSources() {
  const reading = readingOf(state.sentence);
  if (state.source !== null) {
    eachPosition(state.source, position => mark(position, "lit", 0.8));
    return;
  }
  if (!reading || state.pinned !== null) return;
  const [from, to] = facts.sentences.runs[state.sentence];
  for (let token = from; token < to; token++) mark(promptLength + token, "said");
  const top = Math.max(...reading.masses.map((mass, i) => (countsAsSource(i) && inPrompt(i) ? mass : 0)));
  facts.sources.forEach((source, i) => {
    if (!countsAsSource(i) || !(reading.masses[i] > 0) || !(top > 0)) return;
    eachPosition(i, position => mark(position, "lit", reading.masses[i] / top), promptLength);
  });
}

const inPrompt = source => facts.sources[source].ranges[0][0] < promptLength;

function eachPosition(source, f, before = Infinity) {
  for (const [from, to] of facts.sources[source].ranges) {
    for (let position = from; position < Math.min(to, before); position++) f(position);
  }
}

// Classes and properties of the overlay that is on; values from 0 to 1.
function paintOverlay() {
  document.body.dataset.overlay = state.overlay;
  const of = {entropy: token => value("fp", token * 20 + 3), drift: token => stretched(value("drift", token))}[state.overlay];
  const sums = state.overlay === "received" ? received(state.layer) : null;
  const most = sums ? sums.reduce((most, sum, position) => (isSink(position) ? most : Math.max(most, sum)), 0) || 1 : 1;
  for (const element of nodes) {
    if (!element) continue;
    const position = Number(element.dataset.p);
    const v = sums ? (isSink(position) ? null : sums[position] / most) : of ? of(tokenAt(position)) : null;
    if (v === null || v === undefined) {
      if (element.hasAttribute("data-v")) { element.removeAttribute("data-v"); element.style.removeProperty("--v"); }
    } else {
      element.setAttribute("data-v", "");
      element.style.setProperty("--v", v.toFixed(2));
    }
  }
}

// Full colour at the threshold of HALT.
const stretched = drift => (drift === null ? null : Math.min(1, drift / facts.compass.halt));
