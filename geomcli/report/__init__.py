"""A trace as one HTML page: no server, no network, nothing loaded from anywhere.

The sources of the page are the files in `page/`; here they are joined and the trace is put in. Text of a model only
gets into the page as JSON that cannot end its element, or escaped; scripts and styles other than the page's own are
forbidden by its content security policy.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from importlib.resources import files

from geomcli.display import printable
from geomcli.report.facts import facts_of
from geomcli.sources import Source, sources_of
from geomcli.trace import Trace

STYLES = ("base.css", "text.css", "panels.css", "print.css")
SCRIPTS = (
    "dom.js", "data.js", "state.js", "text.js", "highlight.js", "lens.js", "charts.js", "overview.js", "spans.js",
    "timeline.js", "search.js", "main.js",
)  # fmt: skip

# Nothing but the page's own script and style, and no string may become markup or code.
_POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; base-uri 'none'; "
    "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
# JSON inside an HTML element: these would end the element, begin a comment, or end a line of script.
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(trace: Trace, sources: Sequence[Source] | None = None) -> str:
    """The page of a trace. sources: what the spans of the answer can have read; by default its marked documents."""
    chosen = sources_of(trace) if sources is None else sources
    facts, columns = facts_of(trace, chosen)
    page = files(__name__) / "page"
    style = "\n".join((page / name).read_text(encoding="utf-8") for name in STYLES)
    body = "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'(() => {{\n"use strict";\n{body}}})();\n'
    question = next((m["content"] for m in reversed(trace.prompt) if m["role"] == "user"), "")
    title = " ".join(printable(question).split())[:80] or facts["id"]
    parts = {
        "title": html.escape(f"{title} · geom"),
        "policy": _POLICY.format(script=_hash(script), style=_hash(style)),
        "style": style,
        "script": script,
        "plain": _plain(trace),
        "facts": json.dumps(facts, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_ESCAPES),
        "columns": columns.packed(),
    }
    template = (page / "page.html").read_text(encoding="utf-8")
    # One pass: a text that looks like a placeholder stays a text. Halves of surrogate pairs cannot be written as UTF-8.
    made = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    return made.encode("utf-8", "replace").decode("utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _plain(trace: Trace) -> str:
    """The conversation for a reader without scripts."""
    answer = "".join(token.get("text") or "" for token in trace.tokens)
    turns = [*((m["role"], m["content"]) for m in trace.prompt), ("answer", answer)]
    return "\n".join(f"<h2>{html.escape(printable(r))}</h2>\n<pre>{html.escape(printable(t))}</pre>" for r, t in turns)
