// The conversation as tokens. `nodes[position]` is a token's element once it is there; long prompts are built when opened.

const nodes = [];
const LONG_PROMPT = 4000;  // tokens; from here on a message of the prompt starts folded
const PART = 250;          // tokens; from here on the next line break may end a part, which is laid out when it is seen

function tokenElement(position) {
  const text = textAt(position);
  const token = tokenAt(position);
  const names = ["t"];
  if (text === null) names.push("masked");
  else if (/^(<\|.*\|>|<\/?s>|<(bos|eos|pad|start_of_turn|end_of_turn)>)$/.test(text)) names.push("mark");
  else if (/[\n\u2028\u2029]/.test(text)) names.push("line");
  else if (/^[\u00ad\u200b-\u200d\u2060\ufeff]*$/.test(text)) names.push("empty");
  if (token >= 0) {
    const zone = columns.get("zone").values[token];
    names.push(zone === 255 ? "bare" : `z${Math.min(zone, 5)}`);
  }
  const element = h("span", {class: names.join(" "), "data-p": position, tabindex: -1}, text ?? "");
  nodes[position] = element;
  return element;
}

// Tokens from..to-1 in parts that end with a line, so that what is out of sight costs no layout.
function tokensOf(from, to) {
  const box = h("div", {class: "tokens"});
  let part = h("div", {class: "part"});
  for (let position = from; position < to; position++) {
    part.append(tokenElement(position));
    if (part.childElementCount >= PART && (textAt(position) || "").endsWith("\n")) {
      box.append(part);
      part = h("div", {class: "part"});
    }
  }
  if (part.childElementCount) box.append(part);
  return box;
}

// A block that is filled when it is opened for the first time.
function folded(className, title, from, to, open) {
  const box = h("details", {class: `turn ${className}`, open}, h("summary", {}, title, h("span", {class: "muted small"}, `${to - from} tokens`)));
  const build = () => {
    if (box.childElementCount > 1) return;
    box.append(tokensOf(from, to));
    paintOverlay();
    repaint();
  };
  box.build = () => { box.open = true; build(); };
  blocks.push({from, to, box});
  if (open) box.append(tokensOf(from, to));
  box.addEventListener("toggle", () => box.open && build());
  return box;
}
const blocks = [];

function turn(className, title, from, to) {
  return h("section", {class: `turn ${className}`}, h("h2", {}, title), tokensOf(from, to));
}

function conversation() {
  const parts = facts.prompt.length ? promptTurns() : facts.messages.map(({role, text}) =>
    h("section", {class: "turn prompt"}, h("h2", {}, role), h("div", {class: "tokens"}, text)));
  for (const [from, to, thinking] of phases()) {
    const [a, b] = [promptLength + from, promptLength + to];
    parts.push(thinking ? folded("thinking", "thinking", a, b, false) : turn("answer", "answer", a, b));
  }
  if (!tokenCount) parts.push(h("p", {class: "muted"}, "The answer has no tokens."));
  replace(byId("conversation"), ...parts);
}

// [first token, behind the last, whether it thinks]
function phases() {
  const made = [];
  let at = 0;
  for (const [from, to] of facts.thinking) {
    if (from > at) made.push([at, from, false]);
    made.push([from, to, true]);
    at = to;
  }
  if (at < tokenCount) made.push([at, tokenCount, false]);
  return made;
}

// The prompt by message: runs of positions of the same message, with its documents inside; template tokens between them.
function promptTurns() {
  const length = Math.min(promptLength, facts.prompt.length);
  const named = new Array(length).fill("template");
  for (const {name, kind, ranges} of facts.sources) {
    for (const [from, to] of ranges) {
      for (let p = from; p < Math.min(to, length); p++) {
        if (kind === "sinks") named[p] = facts.underSinks[p] ?? "template";
        else named[p] = ["template", "masked"].includes(kind) ? "template" : name;
      }
    }
  }
  const made = [];
  for (let from = 0; from < length;) {
    let to = from;
    while (to < length && named[to] === named[from]) to++;
    const template = named[from] === "template";
    made.push(template || to - from > LONG_PROMPT || length > 4 * LONG_PROMPT
      ? folded(template ? "prompt template" : "prompt", template ? "chat template" : named[from], from, to, template ? to - from < 400 : false)
      : turn("prompt", named[from], from, to));
    from = to;
  }
  return made;
}

// Makes sure that a position can be seen, building and opening what it is in.
function reveal(position) {
  const block = blocks.find(({from, to}) => position >= from && position < to);
  if (block) block.box.build();
  return nodes[position];
}

function show(position, {focus = true} = {}) {
  const element = reveal(position);
  if (!element) return;
  if (focus) element.focus({preventScroll: true});
  const box = element.getBoundingClientRect();
  const top = byId("tools").getBoundingClientRect().bottom + 20;
  const bottom = byId("timeline").getBoundingClientRect().top - 20;
  if (box.top < top || box.bottom > bottom) element.scrollIntoView({block: "center"});
}

// The token on the line above (-1) or below (1) that is nearest to where the cursor is.
function nextLine(position, direction) {
  const here = nodes[position]?.getBoundingClientRect();
  if (!here) return position;
  let best = position;
  let line = null;
  let gap = Infinity;
  for (let p = position + direction; p >= 0 && p < end; p += direction) {
    const box = nodes[p]?.getClientRects()[0];
    if (!box || Math.abs(box.top - here.top) < here.height / 2) continue;
    if (line === null) line = box.top;
    if (Math.abs(box.top - line) > here.height / 2) break;
    const far = Math.abs(box.left - here.left);
    if (far < gap) [best, gap] = [p, far];
  }
  return best;
}
