"""Which traces: by model, zone and time, and by what was written in them (SQLite's FTS5)."""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from geomcli.errors import StoreError
from geomcli.migrations import SEARCH_TOKENS
from geomcli.store import Store

# Where the marks of a match stand in a snippet; control characters, which no text for eyes contains.
MATCH_BEGIN, MATCH_END = "\x02", "\x03"
_SNIPPET_TOKENS = 12


class Filter(msgspec.Struct, frozen=True):
    """Conditions on a trace, all of which hold; None does not ask.

    zone: the one that most steps are in; since, until: epoch ms.
    """

    zone: str | None = None
    since: int | None = None
    until: int | None = None
    model: str | None = None


EVERYTHING = Filter()

# The zone that most steps are in; of a trace that was cut off, too.
_ZONE = (
    "coalesce(t.dominant_zone, (SELECT z.key FROM trace_summaries s, json_each(s.zone_counts) z "
    "WHERE s.trace_id = t.id ORDER BY z.value DESC, z.key LIMIT 1))"
)
_COLUMNS = (
    f"t.id, t.created, t.model, t.title, t.tokens, {_ZONE} AS dominant_zone, t.avg_entropy, t.max_drift, t.complete"
)


def list_traces(store: Store, only: Filter = EVERYTHING, *, limit: int = -1) -> list[dict[str, Any]]:
    """The newest traces: id, created (ms), model, title, tokens, dominant_zone, avg_entropy, max_drift, complete.

    limit: -1 for all.
    """
    conditions, parameters = _conditions(only)
    return store.rows(
        f"SELECT {_COLUMNS} FROM traces t WHERE {conditions} ORDER BY t.created DESC, t.id DESC LIMIT :limit",
        {**parameters, "limit": limit},
    )


def search_traces(store: Store, text: str, only: Filter = EVERYTHING, *, limit: int = -1) -> list[dict[str, Any]]:
    """Traces in which every word of `text` stands, best match first: as `list_traces`, and role and snippet.

    Words are matched whole, without case and accents; `"two words"` as a phrase, `light*` and `"two wo"*` as a
    beginning. Prompts, answers and thoughts are searched, and what a trace that was cut off had written. One row a
    trace.
    """
    query = fts_query(text)
    conditions, parameters = _conditions(only)
    parameters |= {"query": query, "limit": limit}
    unfinished = _search_unfinished(store, query)
    kept = store.rows(
        f"""
        SELECT * FROM (
            SELECT {_COLUMNS}, m.role, m.position, messages_fts.rank AS rank,
                snippet(messages_fts, -1, :begin, :end, '…', {_SNIPPET_TOKENS}) AS snippet
            FROM messages_fts JOIN messages m ON m.id = messages_fts.rowid JOIN traces t ON t.id = m.trace_id
            WHERE messages_fts MATCH :query AND {conditions}
        ) ORDER BY rank, created DESC, position
        """,
        {**parameters, "begin": MATCH_BEGIN, "end": MATCH_END},
    )
    cut_off = [
        {**row, "role": "assistant", "snippet": unfinished[row["id"]]}
        for row in (list_traces(store, only) if unfinished else [])
        if row["id"] in unfinished
    ]
    found: dict[str, dict[str, Any]] = {}
    for row in [*kept, *cut_off]:
        found.setdefault(row["id"], {k: v for k, v in row.items() if k not in ("rank", "position")})
    return list(found.values())[: limit if limit >= 0 else None]


def fts_query(text: str) -> str:
    """The words of `text` for FTS5, each quoted so that none of them acts; StoreError when there is none."""
    parts = []
    text = (
        text.replace("\0", " ").encode("utf-8", "replace").decode()
    )  # what SQLite would take for an end, or not at all
    pieces = text.split('"')
    for place, part in enumerate(pieces):
        if place % 2:
            begins = "".join(pieces[place + 1 : place + 2]).startswith("*")
            parts += [f'"{part}"{"*" if begins else ""}'] if part.strip() else []
        else:
            words = [word for word in part.split() if word.strip("*")]
            parts += [f'"{word.rstrip("*")}"{"*" if word.endswith("*") else ""}' for word in words]
    if not any(character.isalnum() for part in parts for character in part):
        raise StoreError("there is no word to look for.", "geom traces search 'a word'")
    return " ".join(parts)


def _search_unfinished(store: Store, query: str) -> dict[str, str]:
    """Trace id -> snippet, of traces that have tokens and no answer: their text is in no message."""
    texts: dict[str, str] = {}
    for row in store.rows(
        "SELECT k.trace_id, k.text FROM tokens k JOIN traces t ON t.id = k.trace_id WHERE t.complete = 0 "
        "ORDER BY k.trace_id, k.output_index"
    ):
        texts[row["trace_id"]] = texts.get(row["trace_id"], "") + (row["text"] or "")
    if not texts:
        return {}
    memory = sqlite3.connect(":memory:")
    try:
        memory.execute(f"CREATE VIRTUAL TABLE texts USING fts5(text, id UNINDEXED, tokenize='{SEARCH_TOKENS}')")
        memory.executemany("INSERT INTO texts(id, text) VALUES (?, ?)", texts.items())
        marks = (MATCH_BEGIN, MATCH_END)
        found = memory.execute(
            f"SELECT id, snippet(texts, 0, ?, ?, '…', {_SNIPPET_TOKENS}) FROM texts WHERE texts MATCH ?",
            (*marks, query),
        )
        return dict(found.fetchall())
    finally:
        memory.close()


def _conditions(only: Filter) -> tuple[str, dict[str, Any]]:
    made = ["1"]
    parameters: dict[str, Any] = {}
    for name, condition in (
        ("zone", f"{_ZONE} = :zone"),
        ("since", "t.created >= :since"),
        ("until", "t.created <= :until"),
        ("model", "t.model = :model"),
    ):
        if (value := getattr(only, name)) is not None:
            made.append(condition)
            parameters[name] = value
    return " AND ".join(made), parameters
