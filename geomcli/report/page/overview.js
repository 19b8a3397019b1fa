// The head of the page, the legend, and the charts of the whole answer.

function head() {
  const m = facts.metrics;
  const when = typeof facts.created === "number" && facts.created > 0 ? new Date(facts.created) : null;
  const question = facts.messages.filter(({role}) => role === "user").at(-1)?.text || "A trace without a question";
  const counts = zoneCounts();
  const total = counts.reduce((a, b) => a + b, 0);
  const best = counts.indexOf(Math.max(...counts));
  const drift = typeof m.maxDrift === "number" ? m.maxDrift : null;
  const tile = (big, small) => h("li", {}, h("b", {}, big), h("span", {}, small));
  replace(byId("head"), h("h1", {}, question.length > 160 ? `${question.slice(0, 160)}…` : question),
    h("div", {class: "what"}, h("span", {}, facts.model || "unknown model"),
      when && !Number.isNaN(when.getTime()) && h("time", {datetime: when.toISOString()}, when.toLocaleString(undefined, {dateStyle: "medium", timeStyle: "short"})),
      h("span", {}, captured()), h("span", {class: "mono"}, facts.id)),
    h("ul", {class: "tiles"}, tile(String(tokenCount), `tokens${promptLength ? ` after ${promptLength} of prompt` : ""}`),
      typeof m.tokensPerSecond === "number" && tile(m.tokensPerSecond.toFixed(1), "tokens a second"),
      total > 0 && tile(`${facts.zones[best].glyph} ${facts.zones[best].label}`, `${percent(counts[best] / total)} of the tokens`),
      typeof m.avgEntropy === "number" && tile(short(m.avgEntropy), "mean bin entropy, 0 to 1"),
      typeof m.avgEntropyBits === "number" && tile(`${short(m.avgEntropyBits)} bits`, "mean over positions"),
      drift !== null && tile(short(drift, 3), `largest drift, ${m.compass || "OK"}`),
      typeof m.attentionBytes === "number" && m.attentionBytes > 0 && tile(bytes(m.attentionBytes), "of attention left the engine"),
      m.finishReason && tile(String(m.finishReason), "why it ended")),
    notes());
}

function captured() {
  const parts = [facts.modes.join(", ") || "nothing captured"];
  if (facts.layers.length) parts.push(`layer${facts.layers.length > 1 ? "s" : ""} ${facts.layers.join(", ")}`);
  if (facts.heads) parts.push(`heads ${facts.heads.seen}/${facts.heads.total}`);
  return parts.join(" · ");
}

function notes() {
  const said = [];
  const flags = facts.metrics.flags || {};
  const total = zoneCounts().reduce((a, b) => a + b, 0);
  if (!Object.keys(facts.metrics).length) said.push("This trace was cut off before its end.");
  if (facts.metrics.error) said.push(`The answer broke off: ${facts.metrics.error}`);
  if (!total && tokenCount) said.push("No attention was captured: only the text can be shown.");
  else if (total < tokenCount) said.push(`${tokenCount - total} of ${tokenCount} tokens have no numbers.`);
  if (total && !facts.layers.some(layer => starts.get(`${layer}/`)?.at(-1) > 0)) said.push("Fingerprints only: no links to positions were captured, so sources and links cannot be shown.");
  else if (total && !facts.prompt.length) said.push("The prompt’s tokens were not captured: links into the prompt are shown by position.");
  for (const [flag, count] of Object.entries(flags)) said.push(`${flag.replaceAll("_", " ")}: ${count} token${count > 1 ? "s" : ""}`);
  if (facts.cache?.freed) said.push(`${facts.cache.freed} of ${facts.cache.kept + facts.cache.freed} tokens had left the KV cache by the last step, which saw the other ${facts.cache.kept}.`);
  if (facts.heads && facts.heads.seen < facts.heads.total) said.push(`Only ${facts.heads.seen} of ${facts.heads.total} heads were seen.`);
  return said.length > 0 && h("ul", {class: "notes"}, said.map(note => h("li", {}, note)));
}

function legend() {
  const box = byId("legend");
  const scale = (from, to) => h("span", {class: "scale"}, from, h("i"), to);
  if (state.overlay === "zone") {
    const counts = zoneCounts();
    replace(box, facts.zones.map((_, zone) => counts[zone] > 0 && h("span", {}, zoneName(zone), ` ${counts[zone]}`)));
  } else {
    replace(box, {entropy: scale("0 focused", "1 diffuse"), drift: scale("0", `${facts.compass.halt} and more`), received: scale("0", "most attention received"), off: ""}[state.overlay]);
  }
}

function overview() {
  const counts = zoneCounts();
  const total = counts.reduce((a, b) => a + b, 0);
  const values = name => Array.from({length: tokenCount}, (_, token) => (name === "entropy" ? value("fp", token * 20 + 3) : value(name, token))).filter(v => v !== null);
  const drifts = values("drift");
  const thinking = facts.thinking.length > 0;
  const out = total > 0 ? meanHistogram("fp", token => !thinks(token)) : null;
  const card = (title, ...content) => h("div", {class: "card"}, h("h3", {}, h("span", {}, title)), content);
  replace(byId("overview"),
    total > 0 && h("h2", {}, "The whole answer"),
    total > 0 && h("div", {class: "cards", "data-overlay": "zone"},
      card("Zones", h("table", {class: "rows"}, h("tbody", {}, counts.map((count, zone) => ({count, zone})).filter(({count}) => count).sort((a, b) => b.count - a.count).map(({count, zone}) =>
        h("tr", {}, h("td", {}, zoneName(zone)), h("td", {class: "bar"}, fill(count / total)), h("td", {class: "n"}, percent(count / total))))))),
      out && card(thinking ? "Mean mass by distance: answer (dashed: thinking)" : "Mean mass by distance", histogramChart(out, thinking ? meanHistogram("fp", thinks) : null, "mean mass by distance")),
      card("Bin entropy of the tokens", spreadChart(values("entropy"), 1, "bin entropy")),
      drifts.length > 0 && card("Drift of the tokens", spreadChart(drifts, Math.max(0.1, Math.min(1, Math.max(...drifts) * 1.1)), "drift", [[facts.compass.warn, "warn"], [facts.compass.halt, "halt"]]))),
    sourcesTable(),
    h("details", {class: "capture"}, h("summary", {}, "What was asked for, and what was measured"), h("pre", {}, JSON.stringify({capture: facts.capture, metrics: facts.metrics}, null, 1))),
    h("p", {class: "small muted"}, `Drift and zones use fixed thresholds that nobody has calibrated on your traffic: they describe, they do not judge. Attention is not attribution. Made with geom ${facts.geom}.`));
}
