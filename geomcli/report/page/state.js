// What is chosen, and who wants to know. `set({pinned: 12})` calls every listener with the names that changed.

const OVERLAYS = ["zone", "entropy", "drift", "received", "off"];
const state = {
  cursor: promptLength,  // position that arrow keys move
  pinned: null,          // position shown in the lens
  hover: null,
  layer: facts.layer ?? facts.layers.at(-1) ?? null,
  overlay: "zone",
  sinks: false,
  derotated: false,
  sentence: null,        // number of the sentence whose sources are lit
  source: null,          // number of the source that is lit alone
  theme: "light",
};
const listeners = [];
const past = [];

function set(changes) {
  const changed = Object.keys(changes).filter(name => state[name] !== changes[name]);
  if (!changed.length) return;
  Object.assign(state, changes);
  for (const listener of listeners) listener(new Set(changed));
}

// listen(["pinned", "layer"], f): f is called when one of them changed, and once at the start.
function listen(names, f) {
  listeners.push(changed => { if (names.some(name => changed.has(name))) f(); });
  f();
}

function pin(position) {
  if (state.pinned !== null && state.pinned !== position) past.push(state.pinned);
  set({pinned: position, cursor: position, sentence: sentenceOf(tokenAt(position)), source: null});
}

function unpin() {
  set({pinned: null, hover: null, sentence: null, source: null});
}

function back() {
  const before = past.pop();
  if (before === undefined) return;
  set({pinned: before, cursor: before, sentence: sentenceOf(tokenAt(before)), source: null});
  show(before);
}

// Number of the sentence that a token is in; null for the prompt's.
function sentenceOf(token) {
  if (token < 0) return null;
  const found = facts.sentences.runs.findIndex(([from, to]) => token >= from && token < to);
  return found < 0 ? null : found;
}
