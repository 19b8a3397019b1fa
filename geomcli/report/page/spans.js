// What sentences read of the sources (geomcli/spans.py computed it; docs/geometry.md, "Spans").

// {read, covered, lookback, masses} of a sentence in the chosen layer; null where nothing is known.
function readingOf(sentence) {
  const row = sentence === null ? null : facts.sentences.layers[String(state.layer)]?.[sentence];
  if (!row || !row[0]) return null;
  return {read: row[0], covered: row[1], lookback: row[2], masses: row[3]};
}

const countsAsSource = i => facts.sources[i].kind !== "sinks";
const sentenceText = ([from, to]) => facts.tokens.slice(from, to).join("").trim().replaceAll("\n", " ");

function sourcesPart(sentence) {
  const reading = readingOf(sentence);
  if (!reading) return null;
  const unseen = 1 - reading.covered;
  const rows = facts.sources.map((source, i) => ({source, i, mass: reading.masses[i]})).filter(({i}) => countsAsSource(i)).sort((a, b) => b.mass - a.mass);
  return h("section", {class: "sources"}, h("h3", {}, "What this sentence read"),
    h("p", {class: "small muted"}, `“${sentenceText(facts.sentences.runs[sentence]).slice(0, 120)}”`),
    h("table", {class: "rows"}, h("tbody", {}, rows.map(({source, i, mass}) =>
      h("tr", {class: state.source === i ? "lit" : null}, h("td", {}, h("button", {class: "word", "aria-pressed": String(state.source === i), title: "Light this source", onclick: () => lightSource(i)}, source.name)),
        h("td", {class: "bar"}, fill(mass, {more: unseen, source: true, title: `between ${short(mass, 3)} and ${short(Math.min(1, mass + unseen), 3)}`})), h("td", {class: "n"}, h("b", {}, short(mass)))))),),
    h("p", {class: "small muted"}, `Links show ${short(reading.covered)} of the attention${sinkMass(reading)}. Hatched: what a source may have beyond its links.`,
      reading.lookback === null ? "" : ` Lookback ratio ${short(reading.lookback)}.`));
}

function sinkMass(reading) {
  const sinks = facts.sources.findIndex(({kind}) => kind === "sinks");
  return sinks < 0 ? "" : `, ${short(reading.masses[sinks])} on sinks`;
}

function lightSource(i) {
  set({source: state.source === i ? null : i});
  if (state.source !== null) show(facts.sources[i].ranges[0][0], {focus: false});
}

// Sentences by sources. At most ten columns, those with the most; the others in one.
function sourcesTable() {
  const rows = facts.sentences.layers[String(state.layer)];
  if (!rows) return null;
  const most = 10;
  const totals = facts.sources.map((_, i) => rows.reduce((sum, row) => sum + (row[3][i] || 0) * row[0], 0));
  const kept = facts.sources.map((_, i) => i).sort((a, b) => totals[b] - totals[a]).slice(0, most).sort((a, b) => a - b);
  const others = facts.sources.length - kept.length;
  const ratios = rows.some(row => row[2] !== null);
  const limit = 200;
  const line = (row, n) => {
    const masses = row[3];
    const rest = masses.reduce((sum, mass, i) => (kept.includes(i) ? sum : sum + mass), 0);
    return h("tr", {"data-sentence": n},
      h("td", {}, String(facts.sentences.runs[n][0])),
      h("td", {class: "text"}, h("button", {onclick: () => chooseSentence(n)}, sentenceText(facts.sentences.runs[n]) || "⏎")),
      kept.map(i => h("td", {class: countsAsSource(i) ? "cell" : "muted", "--s": countsAsSource(i) ? (masses[i] || 0).toFixed(3) : null}, row[0] ? short(masses[i]) : "–")),
      others > 0 && h("td", {}, row[0] ? short(rest) : "–"), h("td", {class: "muted"}, row[0] ? short(1 - row[1]) : "–"), ratios && h("td", {}, short(row[2])));
  };
  return h("div", {class: "card"}, h("h2", {}, "What each sentence read"),
    h("p", {class: "small muted"}, `Mean attention of a sentence’s tokens to each source, layer ${state.layer}, as far as captured links show it; a source may have up to the unseen mass more. Choose a sentence to light its sources in the prompt.`),
    h("div", {class: "scrolls"}, h("table", {class: "matrix"},
      h("thead", {}, h("tr", {}, h("th", {}, "#"), h("th", {}, "sentence"), kept.map(i => h("th", {}, facts.sources[i].name)), others > 0 && h("th", {}, `${others} others`), h("th", {}, "unseen"), ratios && h("th", {}, "lookback"))),
      h("tbody", {}, rows.slice(0, limit).map(line)))),
    rows.length > limit && h("p", {class: "small muted"}, `The first ${limit} of ${rows.length} sentences; geom spans shows all.`));
}

function markSentence() {
  for (const row of document.querySelectorAll("tr[data-sentence]")) {
    const chosen = state.pinned === null && Number(row.dataset.sentence) === state.sentence;
    row.classList.toggle("chosen", chosen);
    row.querySelector("button").setAttribute("aria-pressed", String(chosen));
  }
}

function chooseSentence(n) {
  if (state.sentence === n && state.pinned === null) { set({sentence: null}); return; }
  set({pinned: null, hover: null, source: null, sentence: n});
}
