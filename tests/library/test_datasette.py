"""The store in datasette: tables that link to their trace, search, views, nothing that fails to show."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from datasette.app import Datasette

from geomcli.discovery import artifacts, points, record
from geomcli.discovery.pipeline import Parameters, discover
from geomcli.store import Store
from tests.discovery.made_points import filled, planted
from tests.library.made_traces import LOCAL, LONG, MID, entry, records

RAW = {"mode": "raw", "token_positions": [0, 3], "topk_logits": [1.5, 0.25], "logsumexp_candidates": 2.0, "drift": 0.2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "traces.db"
    with Store(made) as store:
        for n, hist in enumerate((LOCAL, LONG, MID)):
            entries = [entry(step, f"word{step} ", h, **RAW) for step, h in enumerate((hist, LOCAL), 1)]
            store.add(records(entries, trace_id=f"trace-{n}", model=f"m{n % 2}"))
    filled(made, planted(30)[0])
    with Store(made) as store:
        session = {"model": "made", "request_id": "r0", "first_created": 1, "last_created": 2, "fingerprints": 10}
        store.insert({"sessions": [session]})
        discovery = discover(points.stored(store), Parameters(umap=False))
        record.keep(store, artifacts.load(artifacts.write(discovery, tmp_path / "discovery")))
    return made


def ask(path: Path, *urls: str) -> list[Any]:
    """What datasette answers: pages as text, .json as objects; every one with status 200."""

    async def answers() -> list[Any]:
        app = Datasette([str(path)])
        await app.invoke_startup()
        found = []
        for url in urls:
            response = await app.client.get(url)
            assert response.status_code == 200, (url, response.text)
            found.append(response.json() if ".json" in url else response.text)
        return found

    return asyncio.run(answers())


def test_every_table_and_view_is_shown(path: Path) -> None:
    (database,) = ask(path, "/traces.json")
    tables: Mapping[str, Any] = {table["name"]: table for table in database["tables"]}
    shown = {name for name, table in tables.items() if not table["hidden"]}
    assert {
        "traces",
        "messages",
        "tokens",
        "steps",
        "links",
        "segments",
        "trace_summaries",
        "fingerprints",
        "sessions",
        "discovery_runs",
        "clusters",
    } <= shown
    assert not {name for name in shown if name.startswith("messages_fts")}
    views = {view["name"] if isinstance(view, dict) else view for view in database["views"]}
    assert views == {"trace_list", "zone_counts", "zone_timeline", "drift_timeline", "model_summary", "latest_clusters"}
    for name in sorted(shown | views):
        (page,) = ask(path, f"/traces/{name}")
        assert "<table" in page, name


def test_tables_link_to_their_trace_and_messages_are_searched(path: Path) -> None:
    (database,) = ask(path, "/traces.json")
    tables = {table["name"]: table for table in database["tables"]}
    for name in ("messages", "tokens", "steps", "segments", "trace_summaries"):
        (key,) = tables[name]["foreign_keys"]["outgoing"]
        assert (key["column"], key["other_table"], key["other_column"]) == ("trace_id", "traces", "id")
    assert tables["messages"]["fts_table"] == "messages_fts"
    page, found, none = ask(
        path,
        "/traces/messages",
        "/traces/messages.json?_search=word2&_shape=objects",
        "/traces/messages.json?_search=word3&_shape=objects",
    )
    assert 'type="search"' in page
    assert 'href="/traces/traces/trace-0"' in page
    assert {row["role"] for row in found["rows"]} == {"assistant"}
    assert len(found["rows"]) == 3
    assert none["rows"] == []


def test_views_say_what_their_names_say(path: Path) -> None:
    names = ("trace_list", "zone_counts", "zone_timeline", "drift_timeline", "model_summary")
    pages = ask(path, *(f"/traces/{name}.json?_shape=array" for name in names))
    listed, counts, timeline, drift, models = pages
    assert {row["id"] for row in listed} == {"trace-0", "trace-1", "trace-2"}
    assert listed[0]["created_utc"].startswith("20")
    of_one = {row["zone"]: (row["steps"], row["share"]) for row in counts if row["trace_id"] == "trace-1"}
    assert of_one == {"long_range": (1, 0.5), "syntax_floor": (1, 0.5)}
    assert [row["text"] for row in timeline if row["trace_id"] == "trace-0"] == ["word1 ", "word2 "]
    assert [row["drift"] for row in drift] == [0.2] * 6
    assert {row["model"]: row["traces"] for row in models} == {"m0": 2, "m1": 1}


def test_while_an_answer_is_written(path: Path) -> None:
    with Store(path) as store, store.writer() as writer:
        for record in records([entry(1, "x", LOCAL)], trace_id="new", end=False):
            writer.write(record)
        writer.flush()
        (rows,) = ask(path, "/traces/trace_list.json?_shape=array")
    assert {row["id"]: row["complete"] for row in rows}["new"] == 0
