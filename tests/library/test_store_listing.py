"""Which traces: filters that hold together, search in every text, words that cannot act."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from geomcli.errors import StoreError, UsageError
from geomcli.migrations import m001_traces, m002_trace_summaries, migrations
from geomcli.moments import milliseconds
from geomcli.store import Store
from geomcli.store_listing import MATCH_BEGIN, MATCH_END, Filter, list_traces, search_traces
from tests.library.made_traces import LOCAL, LONG, entry, records

NOW = datetime(2026, 11, 26, 12, 0, 0).astimezone()
DAY = 86_400_000


def add(store: Store, trace_id: str, question: str, answer: str = "", *, created: int = 0, **more: Any) -> None:
    hist = more.pop("hist", LOCAL)
    words = answer.split(" ") if answer else ["x"]
    entries = [entry(n, word + " ", hist) for n, word in enumerate(words, 1)]
    made = records(entries, messages=[{"role": "user", "content": question}], trace_id=trace_id, **more)
    made[0]["created"] = created
    for record in made:
        if record["record_type"] == "message" and record["role"] == "assistant":
            record["reasoning"] = more.get("capture", {}).get("thought", "nothing")
    store.add(made)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "t.db") as opened:
        add(opened, "sky", "Why is the sky blue?", "Rayleigh scattering of light", created=1 * DAY)
        add(opened, "sea", "Why is the sea blue?", "Water absorbs red light", created=2 * DAY, hist=LONG, model="n")
        add(opened, "cut", "Tell me of Zoë", "The photon was scattered", created=3 * DAY, end=False)
        add(opened, "think", "One?", "Two", created=4 * DAY, capture={"thought": "a neutrino, perhaps"})
        yield opened


def listed(store: Store, **more: Any) -> list[str]:
    return [row["id"] for row in list_traces(store, Filter(**more))]


def found(store: Store, text: str, **more: Any) -> list[str]:
    return sorted(row["id"] for row in search_traces(store, text, Filter(**more)))


def test_filters(store: Store) -> None:
    assert listed(store) == ["think", "cut", "sea", "sky"]
    assert listed(store, zone="long_range") == ["sea"]
    assert listed(store, zone="syntax_floor") == ["think", "cut", "sky"]  # one that was cut off has a zone, too
    assert listed(store, since=2 * DAY, until=3 * DAY) == ["cut", "sea"]
    assert listed(store, model="n") == ["sea"]
    assert listed(store, model="n", zone="diffuse") == []
    assert [row["id"] for row in list_traces(store, limit=2)] == ["think", "cut"]


def test_search(store: Store) -> None:
    assert found(store, "blue") == ["sea", "sky"]
    assert found(store, "BLUE sea") == ["sea"]
    assert found(store, "light") == ["sea", "sky"]
    assert found(store, "light", model="n") == ["sea"]
    assert found(store, "scatter*") == ["cut", "sky"]
    assert found(store, "scatter") == []
    assert found(store, '"red light"') == ["sea"]
    assert found(store, '"light red"') == []
    assert found(store, '"of li"*') == ["sky"]
    assert found(store, '"of li"') == []
    assert found(store, '"rayleigh scat"* "of li"*scattering') == ["sky"]
    assert found(store, "zoe") == ["cut"]
    assert found(store, "photon") == ["cut"]  # only in its tokens
    assert found(store, "neutrino") == ["think"]
    assert len(search_traces(store, "blue", limit=1)) == 1
    (row,) = search_traces(store, "neutrino")
    assert row["role"] == "assistant"
    assert f"{MATCH_BEGIN}neutrino{MATCH_END}" in row["snippet"]
    (row,) = search_traces(store, "photon")
    assert f"{MATCH_BEGIN}photon{MATCH_END}" in row["snippet"]


def test_what_is_removed_is_not_found(store: Store) -> None:
    assert store.remove(["sea", "cut", "no such"]) == 2
    assert found(store, "light") == ["sky"]
    assert found(store, "photon") == []
    for table in ("messages", "tokens", "steps", "segments", "trace_summaries"):
        assert store.rows(f"SELECT count(*) AS n FROM {table} WHERE trace_id IN ('sea', 'cut')") == [{"n": 0}]
    assert store.rows("SELECT count(*) AS n FROM links WHERE step_id NOT IN (SELECT id FROM steps)") == [{"n": 0}]


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=20)
    | st.sampled_from(['"', "a AND", "NEAR(", "content:x", "*", "-x", "^a", "o'n", '"a', "a\0b"])
)
def test_no_query_acts(store: Store, text: str) -> None:
    if any(character.isalnum() for character in text):
        search_traces(store, text)
    else:
        with pytest.raises(StoreError, match="no word to look for"):
            search_traces(store, text)


def test_an_older_store_is_searched_as_well(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    db = Database(path)
    m001_traces(db)
    m002_trace_summaries(db)
    db.execute("INSERT INTO traces(id, created, model, version, ruleset, title, capture, complete) "
               "VALUES ('t', 1, 'm', '1.0', 'z', 'x', '{}', 1)")  # fmt: skip
    db.execute("INSERT INTO messages(trace_id, position, role, content, extra) "
               "VALUES ('t', 1, 'assistant', 'an answer', '{\"reasoning\":\"a thought\"}')")  # fmt: skip
    for name in ("m001_traces", "m002_trace_summaries"):
        migrations.ensure_migrations_table(db)
        db["_sqlite_migrations"].insert({"migration_set": "geom", "name": name, "applied_at": "2026"})
    db.conn.commit()
    db.close()
    with Store(path) as store:
        assert found(store, "thought") == ["t"]
        assert found(store, "answer") == ["t"]
        add(store, "new", "another thought")
        assert found(store, "thought") == ["new", "t"]


@pytest.mark.parametrize(
    ("text", "end", "wanted"),
    [
        ("7d", False, "2026-11-19T12:00:00"),
        ("12h", True, "2026-11-26T00:00:00"),
        ("90m", False, "2026-11-26T10:30:00"),
        ("2w", False, "2026-11-12T12:00:00"),
        ("2026-11-20", False, "2026-11-20T00:00:00"),
        ("2026-11-20", True, "2026-11-20T23:59:59.999"),
        ("2026-11-20T18:30", True, "2026-11-20T18:30:00"),
        ("2026-11-20T18:30+00:00", False, "2026-11-20T18:30:00+00:00"),
    ],
)
def test_moments(text: str, end: bool, wanted: str) -> None:
    assert milliseconds(text, now=NOW, end=end) == int(datetime.fromisoformat(wanted).timestamp() * 1000)


@pytest.mark.parametrize("text", ["", "yesterday", "7", "d", "2026-13-01", "999999w", "-1d"])
def test_what_is_no_moment(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        milliseconds(text, now=NOW)
