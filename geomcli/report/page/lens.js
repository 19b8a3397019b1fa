// The lens: everything that is known of one token.

const METRICS = {local: "local", mid: "mid", long: "long", bin_entropy: "entropy", ripple: "ripple"};
const STATUS = ["OK", "WARN", "HALT"];

function lens() {
  const box = byId("lens");
  box.classList.toggle("filled", state.pinned !== null || state.sentence !== null);
  if (state.pinned === null && readingOf(state.sentence)) {
    replace(box, sourcesPart(state.sentence));
    return;
  }
  if (state.pinned === null) {
    replace(box, h("section", {}, h("h3", {}, "Token lens"),
      h("p", {class: "small muted"}, tokenCount
        ? "Point at a token to see what it looked at. Click it, or move with the arrow keys and press Enter, to keep it here."
        : "This trace has no tokens to look into.")));
    return;
  }
  const token = tokenAt(state.pinned);
  const numbers = token >= 0 ? numbersOf(token) : null;
  replace(box, headOf(state.pinned, token, numbers), token >= 0 && linksPart(token), readersPart(state.pinned),
    token >= 0 && signalPart(token, numbers), token >= 0 && sourcesPart(sentenceOf(token)), token >= 0 && expertsPart(token));
}

function zoneName(zone) {
  const {glyph, label} = facts.zones[zone];
  return h("span", {class: "zone-name"}, `${glyph} `, h("span", {class: `sample z${Math.min(zone, 5)}`}, label));
}

function headOf(position, token, numbers) {
  const flags = facts.flags[token];
  return h("section", {class: "token-head-box", "data-overlay": "zone"},
    h("div", {class: "token-head"},
      h("h2", {id: "lens-title"}, token >= 0 ? `#${token} ` : "prompt ", h("span", {class: "mono"}, quoted(textAt(position)))),
      h("button", {class: "only-screen", onclick: back, disabled: !past.length, title: "Back (b)", "aria-label": "Back"}, "←"),
      h("button", {class: "only-screen", onclick: unpin, title: "Close (Escape)", "aria-label": "Close"}, "✕")),
    h("div", {class: "facts-of-token"},
      numbers && h("span", {}, zoneName(numbers.zone), numbers.confidence === null ? "" : ` · confidence ${short(numbers.confidence)}`),
      h("span", {}, `position ${position}`), token >= 0 && thinks(token) && h("span", {}, "thinking"),
      isSink(position) && h("span", {}, "sink"), flags && h("span", {class: "status-1"}, flags.join(", "))),
    facts.layers.length > 1 && layerSwitch());
}

function layerSwitch() {
  return h("div", {class: "facts-of-token"}, "layer ", choice("Layer", facts.layers, () => state.layer, layer => set({layer})));
}

// Buttons of which one is on.
function choice(label, options, current, choose, words = String) {
  return h("span", {class: "switch", role: "radiogroup", "aria-label": label}, options.map(option =>
    h("button", {role: "radio", "aria-checked": option === current() ? "true" : "false", "data-value": option, onclick: () => choose(option)}, words(option))));
}

function wordButton(position) {
  const label = tokenAt(position) >= 0 ? `token ${tokenAt(position)}` : `prompt position ${position}`;
  return h("button", {class: "word", title: "Follow", "aria-label": `${quoted(textAt(position))}, ${label}`, onclick: () => { pin(position); show(position); }}, quoted(textAt(position)));
}

function linksPart(token) {
  const all = linksOf(token, state.layer);
  const title = h("h3", {}, `Looked at (layer ${state.layer ?? "–"})`);
  if (!all.length) return h("section", {}, title, h("p", {class: "small muted"}, whyNoLinks(token)));
  const shown = all.filter(({position}) => state.sinks || !isSink(position));
  const hidden = all.filter(({position}) => isSink(position));
  const split = state.derotated && all.some(({content}) => content !== null);
  title.append(h("span", {class: "only-screen"},
    facts.derotated && h("button", {"aria-pressed": String(state.derotated), onclick: () => set({derotated: !state.derotated}), title: "Content and rotation of each logit (d)"}, "de-rotated"), " ",
    hidden.length > 0 && h("button", {"aria-pressed": String(state.sinks), onclick: () => set({sinks: !state.sinks}), title: "Show the first positions (x)"}, "sinks")));
  const top = shown.length ? shown[0].p : 1;
  const row = ({position, p, share, content, rotation}) => h("tr", {"data-p": position},
    h("td", {class: "muted num"}, String(position)), h("td", {}, wordButton(position)),
    split ? [h("td", {class: "n"}, short(content)), h("td", {class: "n"}, (rotation > 0 ? "+" : "") + short(rotation))] : h("td", {class: "bar"}, fill(p / top)),
    h("td", {class: "n"}, h("b", {}, short(p, 3))), h("td", {class: "n muted"}, short(share)));
  const covered = all.reduce((sum, {p}) => sum + p, 0);
  const sunk = hidden.reduce((sum, {p}) => sum + p, 0);
  return h("section", {}, title,
    h("table", {class: "rows links"},
      h("thead", {}, h("tr", {}, h("th", {}, "at"), h("th", {}, "token"), split ? [h("th", {class: "n"}, "content"), h("th", {class: "n"}, "rotation")] : h("th", {}),
        h("th", {class: "n", title: "True probability: mean over heads of the softmax over all keys"}, "p"),
        h("th", {class: "n", title: "Part of the links that were captured"}, "share"))),
      h("tbody", {}, shown.map(row))),
    h("p", {class: "small muted"}, `top ${all.length} cover ${short(covered)} of the attention`,
      hidden.length && !state.sinks ? `; ${hidden.length} sink${hidden.length > 1 ? "s" : ""} hidden, ${short(sunk)}` : ""));
}

function whyNoLinks(token) {
  if (!numbersOf(token)) return `Nothing was captured of this token${facts.flags[token] ? `: ${facts.flags[token].join(", ")}` : ""}.`;
  return facts.modes.includes("fingerprint") ? "Fingerprints hold no links. Capture raw to see positions." : "No links of this token were captured.";
}

function readersPart(position) {
  const all = state.layer === null ? [] : readersOf(position, state.layer);
  if (!all.length) return tokenAt(position) >= 0 ? null : h("section", {}, h("h3", {}, "Looked at by"), h("p", {class: "small muted"}, "No captured link leads here."));
  const most = 6;
  return h("section", {}, h("h3", {}, `Looked at by ${all.length} token${all.length > 1 ? "s" : ""}`),
    h("table", {class: "rows readers"}, h("tbody", {}, all.slice(0, most).map(({token, p}) =>
      h("tr", {}, h("td", {class: "muted num"}, `#${token}`), h("td", {}, wordButton(promptLength + token)), h("td", {class: "bar"}, fill(p / all[0].p)), h("td", {class: "n"}, short(p, 3)))))),
    all.length > most && h("p", {class: "small muted"}, `and ${all.length - most} more`));
}

function signalPart(token, numbers) {
  if (!numbers) return h("section", {}, h("h3", {}, "Signal"), h("p", {class: "small muted"}, "This token has no numbers."));
  const decisive = facts.zones[numbers.zone].id;
  const meters = evidence(numbers).map(({zone, metric, threshold, value: v, margin}) => [
    h("span", {class: zone === decisive ? "decides" : null}, METRICS[metric] || metric),
    fill(v || 0, {tick: threshold, title: `${zone.replaceAll("_", " ")}: ${short(v, 3)}, threshold ${threshold}`}),
    h("span", {class: "num"}, short(v)), h("span", {class: "num muted", title: "margin over the threshold"}, margin === null ? "" : (margin >= 0 ? "+" : "") + short(margin))]);
  const own = histogram(`${state.layer}/fp`, token) || numbers.histogram;
  const bands = [["local", numbers.local], ["mid", numbers.mid], ["long", numbers.long]];
  const lookback = value(`${state.layer}/lookback`, token);
  const ofLayer = facts.layers.length > 1;
  const bits = (ofLayer ? value(`${state.layer}/bits`, token) : null) ?? numbers.bits;
  const before = token > 0 ? value("drift", token - 1) : null;
  return h("section", {class: "signal"}, h("h3", {}, "Zone, and why", h("span", {}, facts.ruleset === facts.rulesOf ? facts.rulesOf : `thresholds of ${facts.rulesOf}`)),
    h("div", {class: "meters"}, meters),
    h("div", {class: "bands", role: "img", "aria-label": bands.map(([n, v]) => `${n} ${percent(v)}`).join(", ")},
      bands.map(([name, v]) => h("span", {class: name, "width%": `${v * 100}%`, title: `${name} ${short(v, 3)}`}, v > 0.14 ? `${name} ${short(v)}` : ""))),
    h("h3", {}, h("span", {}, ofLayer ? `Mass by distance, layer ${state.layer} (dashed: mean of the layers)` : "Mass by distance (dashed: whole answer)")),
    histogramChart(own, ofLayer ? numbers.histogram : wholeMean(), "mass by distance"),
    h("h3", {}, h("span", {}, "Compass ", h("span", {class: `status-${numbers.status}`}, numbers.drift === null ? "" : STATUS[numbers.status])),
      h("span", {}, numbers.drift === null ? "not enough tokens yet" : `drift ${short(numbers.drift, 3)}${before === null ? "" : ` (${numbers.drift - before >= 0 ? "+" : ""}${short(numbers.drift - before, 3)})`}`)),
    numbers.drift !== null && driftChart(token),
    h("div", {class: "facts-of-token"}, numbers.sink !== null && h("span", {}, `sinks hold ${short(numbers.sink)}`),
      bits !== null && h("span", {}, `${short(bits)} bits over positions`), lookback !== null && h("span", {title: "mean over heads"}, `lookback ratio ${short(lookback)}`)));
}

let mean;
const wholeMean = () => (mean === undefined ? (mean = meanHistogram("fp")) : mean);

function expertsPart(token) {
  if (!facts.experts.length) return null;
  return h("section", {class: "experts"}, h("h3", {}, "Experts"), h("table", {class: "rows"}, h("tbody", {}, facts.experts.map(layer => {
    const routed = expertsOf(token, layer);
    return routed.map(({expert, weight}, i) => h("tr", {}, h("td", {class: "muted"}, i ? "" : `layer ${layer}`), h("td", {class: "n"}, String(expert)),
      h("td", {class: "bar"}, fill(weight)), h("td", {class: "n"}, short(weight))));
  }))));
}
