"""Traces for reports: with thinking, layers and experts; hostile; bare; long. And reading a page back."""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from typing import Any

import numpy as np

from geomcli.fingerprint import fingerprint_from_histogram, rounded
from geomcli.schema import Message
from geomcli.trace import Trace
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, entry, records

HOSTILE = (
    "</script><img src=x onerror=\"window.hacked=1\"><script>window.hacked=1</script>",
    "<!--<script>", "{{script}}", "{{plain}}", "</noscript><svg onload=window.hacked=1>", "\u2028\u2029",
    "\x00\x1b[31m\x85", "\u202etxet\u202c", "javascript:window.hacked=1", "'\"`&amp;&lt;", "\ud800",
    "</style><style>*{display:none}</style>",
    "]]>", "__proto__", "<a href=//evil.example>x</a>",
    "</script ><img src=x onerror=window.hacked=1 x=", "</SCRIPT/x", "<!--<script ",
)  # fmt: skip


def linked(links: dict[int, float], **more: Any) -> dict[str, Any]:
    """The fields of a raw entry with these probabilities by position."""
    logits = [math.log(p) for p in links.values()]
    total = sum(links.values()) or 1.0
    return {
        "token_positions": list(links), "attention_scores": [p / total for p in links.values()], "topk_logits": logits,
        "logsumexp_candidates": 0.0, "topk_mass": sum(links.values()), **more,
    }  # fmt: skip


def rich() -> Trace:
    """Thinking, two layers, experts, head statistics, de-rotated scores, flags, documents, a token without numbers."""
    prompt: list[str | None] = [None, None, "<s>", "user", "\n", "[1]", " cats", " purr", "\n", "[2]", " dogs", " bark",
                                "\n\n", "Who", "?", "</s>"]  # fmt: skip
    content = "[1] cats purr\n[2] dogs bark\n\nWho?"
    texts = ["Hm", ",", " dogs", ".", "</think>", "Dogs", " bark", ".\n", "They", " do", "."]
    hists = [LOCAL, MID, LONG, FLAT, LOCAL, None, MID, MID, LOCAL, LONG, LOCAL]
    made = []
    for n, (text, hist) in enumerate(zip(texts, hists, strict=True), 1):
        m = len(prompt) + n - 2
        links = {m: 0.3, 2: 0.25, 10: 0.2, 6: 0.05} | ({len(prompt): 0.1} if m > len(prompt) else {})
        split = {"content": [1.5] * len(links), "position": [-0.25] * len(links)}
        layers = {
            "3": {
                **linked({2: 0.5, 11: 0.4}),
                "fingerprint": rounded(fingerprint_from_histogram(MID)),
                "sink_mass": 0.5,
            },
            "7": {**linked(links), "fingerprint": rounded(fingerprint_from_histogram(LOCAL)), "sink_mass": 0.25},
        }
        more: dict[str, Any] = (
            {"flags": ["error"]} if hist is None
            else {**linked(links), "layers": layers, "derotated": split, "entropy_bits": 2.5, "sink_mass": 0.25,
                  "head_stats": {"7": {"entropy": [1.0, 2.0], "lookback": [0.5, 0.7]}},
                  "ripple": 0.1, "drift": 0.01 * n if n > 9 else None,
                  "moe": {"7": {"experts": [4, 1], "weights": [0.75, 0.25]}}, "flags": ["masked"]}
        )  # fmt: skip
        phase = "think" if n <= 5 else "output"
        made.append(
            entry(
                n,
                text,
                hist,
                prompt_len=len(prompt),
                query_position=m,
                layer_id=7,
                mode="raw",
                think_phase=phase,
                **more,
            )
        )
    made[0]["prompt_tokens"] = prompt
    messages: list[Message] = [{"role": "user", "content": content}]
    return Trace(records(made, messages=messages, model="tiny-moe"))


def hostile() -> Trace:
    """Markup wherever a trace can hold text."""
    made = []
    for n, text in enumerate(HOSTILE, 1):
        made.append(
            entry(n, text, LOCAL, prompt_len=len(HOSTILE), query_position=len(HOSTILE) + n - 2, mode="raw",
                  **linked({len(HOSTILE) + n - 2: 0.5, 5: 0.25}), flags=[text])
        )  # fmt: skip
    made[0]["prompt_tokens"] = list(HOSTILE)
    made[1]["zone"] = HOSTILE[0]
    built = records(
        made,
        messages=[{"role": HOSTILE[0], "content": HOSTILE[0]}, {"role": "user", "content": "".join(HOSTILE)}],
        model=HOSTILE[0],
        capture={HOSTILE[0]: HOSTILE[0]},
        trace_id="../" + HOSTILE[0],
    )
    built[-1] |= {"error": HOSTILE[0], "finishReason": HOSTILE[0], "compass": HOSTILE[0], "maxDrift": 0.5}
    return Trace(built)


def long(tokens: int, *, links: int = 16) -> Trace:
    """An answer of many tokens in lines, each with links to far and near."""
    generator = np.random.default_rng(0)
    words = [" moon", " reads", " the", " light", ",", " and", " writes", ".", " it", " down", ".\n"]
    made = []
    for n in range(1, tokens + 1):
        m = 50 + n - 2
        near = {max(0, m - int(d)): 1.0 for d in generator.integers(0, 400, links - 1)} | {0: 2.0}
        scale = 0.9 / sum(near.values())
        hist = (LOCAL, MID, LOCAL, FLAT)[n // 40 % 4]
        drift = 0.05 + 0.3 * math.sin(n / 300) ** 2 if n > 9 else None
        made.append(
            entry(n, words[n % len(words)], hist, prompt_len=50, query_position=m, mode="raw", drift=drift,
                  **linked({p: w * scale for p, w in near.items()}))
        )  # fmt: skip
    made[0]["prompt_tokens"] = ["Say"] + [" much"] * 49
    return Trace(records(made, messages=[{"role": "user", "content": "Say" + " much" * 49}]))


def facts_in(page: str) -> dict[str, Any]:
    """The facts of a page, as its script reads them."""
    found = re.search(r'<script type="application/json" id="facts">(.*?)</script>', page, re.DOTALL)
    assert found
    facts: dict[str, Any] = json.loads(found[1])
    return facts


def column_in(page: str, name: str) -> list[float | None]:
    """A column of a page, None where it has no value."""
    found = re.search(r'<script type="text/plain" id="columns">(.*?)</script>', page, re.DOTALL)
    assert found
    block = zlib.decompress(base64.b64decode(found[1]))
    kind, offset, count = facts_in(page)["columns"][name]
    types = {"unit": "<u2", "u8": "<u1", "u16": "<u2", "u32": "<u4", "f32": "<f4"}
    raw = np.frombuffer(block, types[kind], count, offset)
    if kind == "unit":
        return [None if v == 65535 else v / 65534 for v in raw.tolist()]
    return [None if math.isnan(v) else v for v in raw.tolist()]
