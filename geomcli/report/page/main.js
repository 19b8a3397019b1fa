// Tools, keys, pointer, and the start.

const KEYS = [
  ["← →  h l", "one token back, forward"], ["↑ ↓  k j", "to the line above, below"], ["Home End", "first, last token of the answer"],
  ["Enter  p", "keep the token in the lens"], ["g", "follow its strongest link"], ["b", "back"], ["Escape", "close the lens"],
  ["s", "colour: zone, entropy, drift, received, off"], ["x", "show or hide sinks"], ["d", "de-rotated scores"], ["+ −", "next, previous layer"],
  ["z", "fold or unfold thinking"], ["r", "light the sources of this sentence"], ["/", "search"], ["n N", "next, previous find"], ["t", "light or dark"], ["?", "this list"],
];

function tools() {
  const bar = byId("tools");
  bar.hidden = false;
  const query = h("input", {id: "query", type: "search", placeholder: "Search  (/)", "aria-label": "Search in the answer", autocomplete: "off", spellcheck: "false",
    title: 'words, "quotes", @12-40, zone:diffuse, phase:think, drift>0.1, entropy>0.6',
    oninput: event => runSearch(event.target.value),
    onkeydown: event => {
      if (event.key === "Enter") step(event.shiftKey ? -1 : 1);
      else if (event.key === "Escape") { event.target.value = ""; runSearch(""); focusCursor(); }
      else return;
      event.preventDefault();
      event.stopPropagation();
    }});
  const switches = h("span", {id: "overlay"});
  const theme = h("button", {id: "theme", onclick: toggleTheme, title: "Light or dark (t)"});
  replace(bar, h("div", {}, switches, h("div", {id: "legend", class: "legend", "data-overlay": "zone"}),
    h("span", {class: "find"}, query, h("output", {id: "found", for: "query"})), theme,
    h("button", {id: "keys", onclick: help, title: "Keys (?)", "aria-label": "Keys and help"}, "?")));
  listen(["overlay"], () => {
    const had = switches.contains(document.activeElement);
    replace(switches, choice("Colour tokens by", OVERLAYS, () => state.overlay, overlay => set({overlay})));
    if (had) switches.querySelector('[aria-checked="true"]').focus();
  });
  listen(["theme"], () => { theme.textContent = state.theme === "dark" ? "☀ light" : "☾ dark"; });
  listen(["overlay"], legend);
}

function help() {
  const dialog = byId("help");
  replace(dialog, h("h2", {id: "help-title"}, "Keys"), h("dl", {}, KEYS.flatMap(([keys, does]) => [h("dt", {}, keys.split(/\s+/).map((key, i) => [i ? " " : "", h("kbd", {}, key)])), h("dd", {}, does)])),
    h("p", {class: "small muted"}, "Tokens that are looked at fill up from below, the fuller the stronger, by the square root of their probability. Sinks, the first positions, hold attention that has nowhere to go."),
    h("button", {onclick: () => dialog.close(), autofocus: true}, "Close"));
  dialog.showModal();
}

// --- theme

function startTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  state.theme = remembered() || (dark.matches ? "dark" : "light");
  dark.addEventListener("change", () => { if (!remembered()) set({theme: dark.matches ? "dark" : "light"}); });
  listen(["theme"], () => { document.documentElement.dataset.theme = state.theme; });
}

function remembered() {
  try { return localStorage.getItem("geom-theme"); } catch { return null; }
}

function toggleTheme() {
  set({theme: state.theme === "dark" ? "light" : "dark"});
  try { localStorage.setItem("geom-theme", state.theme); } catch { /* a page without storage forgets it */ }
}

// --- keys

function focusCursor() {
  show(state.cursor);
}

function move(to) {
  const target = Math.min(end - 1, Math.max(facts.prompt.length ? 0 : promptLength, to));
  set({cursor: target, hover: null});
  if (state.pinned !== null) pin(target);
  show(target);
}

function nextOf(list, current, direction) {
  return list[(list.indexOf(current) + direction + list.length) % list.length];
}

const actions = {
  ArrowLeft: () => move(state.cursor - 1), h: () => move(state.cursor - 1),
  ArrowRight: () => move(state.cursor + 1), l: () => move(state.cursor + 1),
  ArrowUp: () => move(nextLine(state.cursor, -1)), k: () => move(nextLine(state.cursor, -1)),
  ArrowDown: () => move(nextLine(state.cursor, 1)), j: () => move(nextLine(state.cursor, 1)),
  Home: () => move(promptLength), End: () => move(end - 1),
  Enter: () => pin(state.cursor), p: () => pin(state.cursor),
  g: follow, b: back, Escape: unpin,
  s: () => set({overlay: nextOf(OVERLAYS, state.overlay, 1)}), x: () => set({sinks: !state.sinks}), d: () => set({derotated: !state.derotated}),
  "+": () => facts.layers.length && set({layer: nextOf(facts.layers, state.layer, 1)}), "-": () => facts.layers.length && set({layer: nextOf(facts.layers, state.layer, -1)}),
  z: fold, r: () => { const n = sentenceOf(tokenAt(state.cursor)); if (n !== null) chooseSentence(n); },
  "/": () => byId("query").focus(), n: () => step(1), N: () => step(-1), t: toggleTheme, "?": help,
};

function follow() {
  const [strongest] = linksOf(tokenAt(state.cursor), state.layer).filter(({position}) => state.sinks || !isSink(position));
  if (!strongest) return;
  pin(strongest.position);
  show(strongest.position);
}

function fold() {
  const boxes = [...document.querySelectorAll("details.thinking")];
  const open = !boxes.some(box => box.open);
  for (const box of boxes) box.open = open;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const at = event.target;
  if (at.matches("input")) return;
  // Buttons and folds keep their own Enter; arrows keep scrolling where no token has the focus and nothing is pinned.
  if (event.key === "Enter" && at.closest("button, summary")) return;
  if (/^(Arrow|Home|End)/.test(event.key) && at.closest(".switch, #lens, .scrolls, #overview")) return;
  const action = Object.hasOwn(actions, event.key) ? actions[event.key] : null;
  if (!action || !tokenCount) return;
  event.preventDefault();
  action();
}

// --- pointer

const positionOf = event => {
  const element = event.target.closest?.(".t");
  return element ? Number(element.dataset.p) : null;
};

function tip(position, element) {
  const box = byId("tip");
  box.hidden = position === null;
  if (position === null) return;
  const token = tokenAt(position);
  const numbers = token >= 0 ? numbersOf(token) : null;
  const links = linksOf(token, state.layer).filter(({position: to}) => state.sinks || !isSink(to)).slice(0, 4);
  const by = token < 0 && state.layer !== null ? readersOf(position, state.layer) : [];
  box.dataset.overlay = "zone";
  replace(box, h("div", {}, h("b", {}, token >= 0 ? `#${token} ` : `prompt ${position} `), h("span", {class: "mono"}, quoted(textAt(position)))),
    numbers && h("div", {}, zoneName(numbers.zone), numbers.drift === null ? "" : ` · drift ${short(numbers.drift, 3)}`),
    links.length > 0 && h("table", {}, h("tbody", {}, links.map(({position: to, p}) => h("tr", {}, h("td", {}, h("b", {}, short(p))), h("td", {class: "mono"}, quoted(textAt(to))))))),
    by.length > 0 && h("div", {class: "muted"}, `looked at by ${by.length} tokens, most by #${by[0].token} (${short(by[0].p)})`));
  const place = element.getClientRects()[0];
  const size = box.getBoundingClientRect();
  const below = place.bottom + 8 + size.height < byId("timeline").getBoundingClientRect().top;
  box.style.left = `${Math.max(8, Math.min(place.left, document.documentElement.clientWidth - size.width - 8)) + scrollX}px`;
  box.style.top = `${(below ? place.bottom + 8 : place.top - size.height - 8) + scrollY}px`;
}

function pointer() {
  const area = byId("conversation");
  area.addEventListener("mouseover", event => {
    const position = positionOf(event);
    set({hover: position});
    tip(position, event.target);
  });
  area.addEventListener("mouseleave", () => { set({hover: null}); tip(null); });
  area.addEventListener("click", event => {
    const position = positionOf(event);
    if (position === null || getSelection()?.toString()) return;
    pin(position);
    nodes[position].focus({preventScroll: true});
  });
  area.addEventListener("focusin", event => {
    const position = positionOf(event);
    if (position !== null) set({cursor: position});
  });
}

// One token can be reached with Tab: the one that the cursor is on. It says what it is.
let reachable = null;
function roving() {
  if (reachable) { reachable.tabIndex = -1; reachable.removeAttribute("role"); reachable.removeAttribute("aria-label"); }
  reachable = nodes[state.cursor] || null;
  if (!reachable) return;
  reachable.tabIndex = 0;
  reachable.setAttribute("role", "button");
  reachable.setAttribute("aria-label", spoken(state.cursor));
}

function spoken(position) {
  const token = tokenAt(position);
  const numbers = token >= 0 ? numbersOf(token) : null;
  const [strongest] = linksOf(token, state.layer).filter(({position: to}) => !isSink(to));
  return `${token >= 0 ? `token ${token}` : `prompt position ${position}`}, ${textAt(position) ?? "masked"}`
    + (numbers ? `, ${facts.zones[numbers.zone].label}` : "") + (strongest ? `, looks most at ${textAt(strongest.position) ?? strongest.position}, ${percent(strongest.p)}` : "");
}

async function start() {
  startTheme();
  try {
    await loadColumns();
  } catch (error) {
    replace(document.body, h("p", {}, `The numbers of this page cannot be read: ${error}`));
    return;
  }
  byId("head").hidden = byId("columns-of-page").hidden = false;
  head();
  conversation();
  tools();
  timeline();
  listen(["pinned", "layer", "sinks", "derotated", "sentence", "source"], lens);
  listen(["layer"], overview);
  listen(["sentence", "layer", "pinned"], markSentence);
  listen(["overlay", "layer"], paintOverlay);
  listen(["hover", "pinned", "layer", "sinks", "sentence", "source"], repaint);
  listen(["cursor"], roving);
  listen(["pinned"], () => { byId("said").textContent = state.pinned === null ? "" : `In the lens: ${spoken(state.pinned)}`; });
  document.addEventListener("keydown", onKey);
  pointer();
  document.documentElement.dataset.ready = "";
}

start();
