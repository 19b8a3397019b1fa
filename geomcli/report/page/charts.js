// Charts as SVG in the colours of the page.

const BIN_LABELS = {0: "0", 2: "4", 4: "16", 6: "64", 8: "256", 10: "1k", 12: "4k", 14: "16k"};

function binName(bin) {
  const [from, to] = facts.bins[bin];
  return to === null ? `${from} and more` : `${from}–${to}`;
}

// Masses by log-distance as bars; `mean` as a dashed outline over them.
function histogramChart(masses, mean, title) {
  const [width, height, step] = [320, 74, 20];
  const top = Math.max(...masses, ...(mean || []), 0.01);
  const y = mass => height - (mass / top) * (height - 4);
  const chart = s("svg", {viewBox: `0 0 ${width} ${height + 14}`, role: "img", "aria-label": histogramWords(masses, title)});
  masses.forEach((mass, bin) => {
    chart.append(s("rect", {class: "bar-fill", x: bin * step + 2, y: y(mass), width: step - 4, height: height - y(mass)},
      s("title", {}, `${binName(bin)} tokens back: ${short(mass, 3)}`)));
  });
  if (mean) {
    const path = mean.map((mass, bin) => `${bin ? "L" : "M"}${bin * step} ${y(mass)}H${(bin + 1) * step}`).join("");
    chart.append(s("path", {class: "mean", d: path}));
  }
  chart.append(s("line", {class: "axis", x1: 0, x2: width, y1: height, y2: height}));
  for (const [bin, label] of Object.entries(BIN_LABELS)) chart.append(s("text", {x: bin * step + 2, y: height + 12}, label));
  return chart;
}

function histogramWords(masses, title) {
  const best = masses.indexOf(Math.max(...masses));
  return `${title}: most, ${percent(masses[best])}, at ${binName(best)} tokens back`;
}

// How often values of [0, top] fall into each of 20 bins.
function spreadChart(values, top, title, limits = []) {
  const [width, height, n] = [320, 60, 20];
  const counts = new Array(n).fill(0);
  for (const v of values) counts[Math.min(n - 1, Math.floor((v / top) * n))] += 1;
  const most = Math.max(...counts, 1);
  const chart = s("svg", {viewBox: `0 0 ${width} ${height + 14}`, role: "img", "aria-label": `${title}: ${values.length} tokens, from 0 to ${top}`});
  counts.forEach((count, i) => chart.append(
    s("rect", {class: "bar-fill", x: i * (width / n) + 1, y: height - (count / most) * (height - 4), width: width / n - 2, height: (count / most) * (height - 4)},
      s("title", {}, `${short((i / n) * top)}–${short(((i + 1) / n) * top)}: ${count} tokens`))));
  for (const [at, name] of limits) {
    if (at < top) chart.append(s("line", {class: `limit ${name}`, x1: (at / top) * width, x2: (at / top) * width, y1: 0, y2: height}));
  }
  chart.append(s("line", {class: "axis", x1: 0, x2: width, y1: height, y2: height}),
    s("text", {x: 0, y: height + 12}, "0"), s("text", {x: width, y: height + 12, "text-anchor": "end"}, short(top)));
  return chart;
}

const limits = () => ["warn", "halt"].filter(name => facts.compass[name] <= driftScale());

// The last values up to a token as a line, with the thresholds.
function driftChart(token) {
  const [width, height] = [320, 40];
  const first = Math.max(0, token - 79);
  const values = Array.from({length: token - first + 1}, (_, i) => value("drift", first + i));
  const x = i => (values.length > 1 ? (i / (values.length - 1)) * width : width);
  const y = v => height - Math.min(1, v / driftScale()) * height;
  let path = "";
  values.forEach((v, i) => { if (v !== null) path += `${path && values[i - 1] !== null ? "L" : "M"}${x(i).toFixed(1)} ${y(v).toFixed(1)}`; });
  return s("svg", {viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "drift of the last steps"},
    ...limits().map(name => s("line", {class: `limit ${name}`, x1: 0, x2: width, y1: y(facts.compass[name]), y2: y(facts.compass[name])},
      s("title", {}, `${name} ${facts.compass[name]}`))),
    s("path", {class: "curve", d: path}), s("line", {class: "axis", x1: 0, x2: width, y1: height, y2: height}),
    s("text", {x: 0, y: 8}, short(driftScale(), 1)));
}
