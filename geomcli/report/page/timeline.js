// The answer from left to right: phases, zones in a lane each, drift; a cursor to scrub with.

const MOST_COLUMNS = 600;

function timeline() {
  const footer = byId("timeline");
  if (!tokenCount) return;
  footer.hidden = false;
  const track = h("div", {id: "track", role: "slider", tabindex: 0, "aria-label": "Token", "aria-valuemin": 0, "aria-valuemax": tokenCount - 1});
  const now = h("div", {class: "now"});
  track.append(drawing(), now);
  replace(footer, h("div", {}, h("div", {class: "labels", "aria-hidden": "true"}, h("span", {}, "phase"), h("span", {}, "zone"), h("span", {}, `drift, 0 to ${short(driftScale(), 1)}`)), track));
  const scrub = event => {
    const box = track.getBoundingClientRect();
    const token = Math.min(tokenCount - 1, Math.max(0, Math.floor(((event.clientX - box.left) / box.width) * tokenCount)));
    pin(promptLength + token);
    show(promptLength + token, {focus: false});
  };
  track.addEventListener("pointerdown", event => {
    track.setPointerCapture(event.pointerId);
    scrub(event);
    track.focus({preventScroll: true});
  });
  track.addEventListener("pointermove", event => event.buttons && scrub(event));
  listen(["cursor", "hover"], () => {
    const token = Math.max(0, tokenAt(state.hover ?? state.cursor));
    const share = (token + 0.5) / tokenCount;
    now.style.left = `${share * 100}%`;
    now.dataset.label = `${token} / ${tokenCount - 1}`;
    now.classList.toggle("right", share > 0.85);
    track.setAttribute("aria-valuenow", token);
    track.setAttribute("aria-valuetext", `token ${token}, ${quoted(facts.tokens[token])}`);
  });
}

function drawing() {
  const chart = s("svg", {viewBox: `0 0 1000 92`, preserveAspectRatio: "none", "aria-hidden": "true"},
    s("defs", {}, s("pattern", {id: "hatch", width: 6, height: 6, patternUnits: "userSpaceOnUse"}, s("path", {d: "M0 6L6 0", stroke: "currentColor", "stroke-width": 1.2, opacity: 0.6}))));
  const x = token => (token / tokenCount) * 1000;
  for (const [from, to, thinking] of phases()) {
    chart.append(s("rect", {class: thinking ? "phase think" : "phase", x: x(from), y: 4, width: Math.max(0.5, x(to) - x(from) - 1), height: 9}, s("title", {}, thinking ? "thinking" : "answer")));
  }
  zoneLanes(chart, x);
  driftLine(chart, x);
  return chart;
}

// Each zone has a lane of its own, so that it can be told without its colour. Many tokens share a column by majority.
function zoneLanes(chart, x) {
  const zones = columns.get("zone").values;
  const width = Math.max(1, Math.ceil(tokenCount / MOST_COLUMNS));
  for (let from = 0; from < tokenCount; from += width) {
    const counts = new Map();
    for (const zone of zones.subarray(from, from + width)) counts.set(zone, (counts.get(zone) || 0) + 1);
    const [zone] = [...counts].sort((a, b) => b[1] - a[1])[0];
    if (zone === 255) continue;
    const lane = Math.min(zone, 5);
    chart.append(s("rect", {x: x(from), y: 18 + lane * 5.4, width: Math.max(0.6, x(Math.min(from + width, tokenCount)) - x(from) - (tokenCount < 200 ? 1 : 0)), height: 4.6, fill: `var(--z${lane})`}));
  }
}

function driftLine(chart, x) {
  const [top, bottom] = [54, 90];
  const y = v => bottom - Math.min(1, v / driftScale()) * (bottom - top);
  for (const name of limits()) chart.append(s("line", {class: `limit ${name}`, x1: 0, x2: 1000, y1: y(facts.compass[name]), y2: y(facts.compass[name])}));
  const width = Math.max(1, Math.ceil(tokenCount / MOST_COLUMNS));
  let path = "";
  let open = false;
  for (let from = 0; from < tokenCount; from += width) {
    let most = null;
    for (let token = from; token < Math.min(from + width, tokenCount); token++) {
      const v = value("drift", token);
      if (v !== null && (most === null || v > most)) most = v;
    }
    if (most !== null) path += `${open ? "L" : "M"}${x(from + width / 2).toFixed(1)} ${y(most).toFixed(1)}`;
    open = most !== null;
  }
  chart.append(s("line", {class: "axis", x1: 0, x2: 1000, y1: bottom, y2: bottom}), s("path", {class: "curve", d: path}));
}
