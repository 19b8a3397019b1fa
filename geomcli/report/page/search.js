// Search in the answer's tokens, in the language of geomcli/search.py: words, "quotes", @120-140, zone:diffuse, drift>0.1.

const found = {tokens: [], at: -1};
const VALUES = {
  local: token => value("fp", token * 20), mid: token => value("fp", token * 20 + 1), long: token => value("fp", token * 20 + 2),
  entropy: token => value("fp", token * 20 + 3), bits: token => value("bits", token), drift: token => value("drift", token),
  confidence: token => value("confidence", token), sink: token => value("sink", token), ripple: token => value("ripple", token),
};
const SIGNS = {">": (a, b) => a > b, ">=": (a, b) => a >= b, "<": (a, b) => a < b, "<=": (a, b) => a <= b, "=": (a, b) => a === b};

// Tokens that meet every condition, in order; throws an Error that says what is wrong.
function search(query) {
  const tests = [];
  let words = [];
  const close = () => {
    if (words.length) tests.push(withText(words.join(" ")));
    words = [];
  };
  for (const [, inQuotes, word] of query.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)) {
    const test = inQuotes !== undefined ? withText(inQuotes.replace(/\\(.)/g, "$1")) : condition(word);
    if (test) { close(); tests.push(test); } else words.push(word);
  }
  close();
  if (!tests.length) return [];
  return Array.from({length: tokenCount}, (_, token) => token).filter(token => tests.every(test => test(token)));
}

function condition(word) {
  let match = /^@(\d+)(?:(-)(\d*))?$/.exec(word);
  if (match) {
    const [first, last] = [Number(match[1]), match[2] ? (match[3] ? Number(match[3]) : Infinity) : Number(match[1])];
    return token => token >= first && token <= last;
  }
  match = /^([A-Za-z_]+)(>=|<=|>|<|=)(.*)$/.exec(word);
  if (match && match[1].toLowerCase() in VALUES) {
    const [of, test, number] = [VALUES[match[1].toLowerCase()], SIGNS[match[2]], match[3] === "" ? NaN : Number(match[3])];
    if (Number.isNaN(number)) throw new Error(`${word}: no number`);
    return token => { const v = of(token); return v !== null && test(v, number); };
  }
  match = /^(zone|phase|compass|flag):(.*)$/i.exec(word);
  return match ? keyed(match[1].toLowerCase(), match[2].toLowerCase(), word) : null;
}

function keyed(key, wanted, word) {
  const known = {zone: facts.zones.map(({id}) => id), phase: ["think", "output"], compass: ["ok", "warn", "halt"]}[key];
  if (!wanted || (known && !known.includes(wanted))) throw new Error(`${word}: ${known ? `one of ${known.join(", ")}` : "which?"}`);
  if (key === "phase") return token => (thinks(token) ? "think" : "output") === wanted;
  if (key === "flag") return token => (facts.flags[token] || []).some(flag => flag.toLowerCase() === wanted);
  if (key === "zone") return token => facts.zones[columns.get("zone").values[token]]?.id === wanted;
  return token => columns.get("compass").values[token] === known.indexOf(wanted);
}

// A text may run over several tokens: all that it touches are found.
function withText(text) {
  const wanted = text.toLowerCase();
  const pieces = facts.tokens.map(piece => piece.toLowerCase());
  const whole = pieces.join("");
  const touched = new Set();
  let token = 0;
  let begins = 0;
  for (let at = wanted ? whole.indexOf(wanted) : -1; at >= 0; at = whole.indexOf(wanted, at + 1)) {
    while (begins + pieces[token].length <= at) begins += pieces[token++].length;
    for (let i = token, reach = begins; reach < at + wanted.length; reach += pieces[i++].length) if (pieces[i]) touched.add(i);
  }
  return index => touched.has(index);
}

function runSearch(query) {
  const said = byId("found");
  found.at = -1;
  said.classList.remove("wrong");
  try {
    found.tokens = query.trim() ? search(query) : [];
    said.textContent = query.trim() ? `${found.tokens.length} token${found.tokens.length === 1 ? "" : "s"}` : "";
  } catch (error) {
    found.tokens = [];
    said.classList.add("wrong");
    said.textContent = error.message;
  }
  repaint();
}

// To the next found token (1) or the one before (-1).
function step(direction) {
  if (!found.tokens.length) return;
  found.at = (found.at + direction + found.tokens.length + (found.at < 0 && direction < 0 ? 1 : 0)) % found.tokens.length;
  byId("found").textContent = `${found.at + 1} of ${found.tokens.length}`;
  pin(promptLength + found.tokens[found.at]);
  show(promptLength + found.tokens[found.at], {focus: document.activeElement !== byId("query")});
}
