"""Odd traces for the panes, and what tests ask of an app: waiting, text of a widget, text of a list's rows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
from textual.pilot import Pilot
from textual.widget import Widget

from geomcli.schema import Record
from geomcli.tui.app import GeomApp
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, entry, numbers, records

ZONES = {"local": LOCAL, "mid": MID, "long": LONG, "flat": FLAT}
ASKED = {"return_attention_tokens": True, "attention_fingerprint_mode": False, "temperature": 0.0, "max_tokens": 64}


def links(*positions: int, p: float = 0.1) -> dict[str, Any]:
    """Link fields of a raw entry: equal links to these positions, each of probability `p`."""
    k = len(positions)
    return {
        "token_positions": list(positions),
        "attention_scores": [1 / k] * k,
        "topk_logits": [float(np.log(p))] * k,
        "logsumexp_candidates": 0.0,
    }


def layers(**hists: str) -> dict[str, Any]:
    """`layers(l3="local", l7="mid")`: entry fields of several raw layers with histograms of these shapes."""
    return {"layers": {name[1:]: {**links(5, 6), **numbers(ZONES[zone])} for name, zone in hists.items()}}


def made(shapes: Sequence[str | None], texts: Sequence[str] | None = None, **more: Any) -> list[Record]:
    """A finished trace with a fingerprint of each shape ("local" …); None: a token without numbers.

    `each`: entry fields of every token.
    """
    each = more.pop("each", {})
    texts = texts or [f" t{n}" for n in range(len(shapes))]
    entries = [
        entry(n, text, None if shape is None else ZONES[shape], **each)
        for n, (text, shape) in enumerate(zip(texts, shapes, strict=True), 1)
    ]
    return records(entries, capture=more.pop("capture", ASKED), **more)


async def settled(pilot: Pilot[Any], seconds: float = 0.1) -> None:
    await asyncio.sleep(seconds)
    await pilot.pause()


def text_of(app: GeomApp, name: str) -> str:
    """What a text widget says."""
    return str(app.screen.query_one(f"#{name}").render())


def drawn(widget: Widget) -> list[str]:
    """The lines of a list that are on screen."""
    return [widget.render_line(y).text.rstrip() for y in range(widget.scrollable_content_region.height)]


def said(app: GeomApp) -> str:
    return " ".join(notification.message for notification in app._notifications)
