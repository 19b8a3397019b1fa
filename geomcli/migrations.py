"""The store's schema, step by step; a database of any earlier release is brought up to date when it is opened.

Times are integer epoch milliseconds, zones are rows of data rather than CHECKs, and fingerprints are 80-byte BLOBs
(little-endian float32).
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from sqlite_utils import Database, Migrations

from geomcli.trace_summary import of_blobs

migrations = Migrations("geom")
SEARCH_TOKENS = "unicode61 remove_diacritics 2"  # words without case and accents


@migrations()
def m001_traces(db: Database) -> None:
    db.executescript(
        """
        CREATE TABLE traces (
            id TEXT PRIMARY KEY,
            created INTEGER NOT NULL,
            model TEXT NOT NULL,
            version TEXT NOT NULL,
            ruleset TEXT NOT NULL,
            title TEXT NOT NULL,
            capture TEXT NOT NULL,
            complete INTEGER NOT NULL DEFAULT 0,
            tokens INTEGER,
            dominant_zone TEXT,
            avg_entropy REAL,
            max_drift REAL,
            metrics TEXT,
            extra TEXT
        );
        CREATE INDEX traces_created ON traces(created);
        CREATE TABLE messages (
            id INTEGER PRIMARY KEY,
            trace_id TEXT NOT NULL REFERENCES traces(id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            name TEXT,
            role TEXT NOT NULL,
            content TEXT NOT NULL,
            extra TEXT,
            UNIQUE(trace_id, position)
        );
        CREATE TABLE tokens (
            id INTEGER PRIMARY KEY,
            trace_id TEXT NOT NULL REFERENCES traces(id) ON DELETE CASCADE,
            output_index INTEGER NOT NULL,
            text TEXT,
            token_id INTEGER,
            segment TEXT,
            extra TEXT,
            UNIQUE(trace_id, output_index)
        );
        CREATE TABLE steps (
            id INTEGER PRIMARY KEY,
            trace_id TEXT NOT NULL REFERENCES traces(id) ON DELETE CASCADE,
            output_index INTEGER NOT NULL,
            layer INTEGER NOT NULL,
            decode_step INTEGER,
            zone TEXT,
            confidence REAL,
            local REAL,
            mid REAL,
            long REAL,
            bin_entropy REAL,
            entropy_bits REAL,
            sink_mass REAL,
            drift REAL,
            compass TEXT,
            think_phase TEXT,
            fingerprint BLOB,
            extra TEXT,
            UNIQUE(trace_id, output_index, layer)
        );
        CREATE TABLE links (
            step_id INTEGER PRIMARY KEY REFERENCES steps(id) ON DELETE CASCADE,
            payload BLOB NOT NULL
        );
        CREATE TABLE segments (
            id INTEGER PRIMARY KEY,
            trace_id TEXT NOT NULL REFERENCES traces(id) ON DELETE CASCADE,
            position INTEGER NOT NULL,
            name TEXT NOT NULL,
            type TEXT NOT NULL,
            start INTEGER NOT NULL,
            "end" INTEGER NOT NULL,
            extra TEXT,
            UNIQUE(trace_id, position)
        );
        CREATE VIEW zone_counts AS
            SELECT trace_id, zone, count(*) AS steps FROM steps WHERE zone IS NOT NULL GROUP BY trace_id, zone;
        CREATE VIEW drift_timeline AS
            SELECT trace_id, output_index, drift, compass FROM steps WHERE drift IS NOT NULL;
        """
    )
    db.table("messages").enable_fts(["content"], create_triggers=True)


@migrations()
def m002_trace_summaries(db: Database) -> None:
    db.execute(
        """
        CREATE TABLE trace_summaries (
            trace_id TEXT PRIMARY KEY REFERENCES traces(id) ON DELETE CASCADE,
            steps INTEGER NOT NULL,
            local REAL NOT NULL,
            mid REAL NOT NULL,
            long REAL NOT NULL,
            bin_entropy REAL NOT NULL,
            zone_counts TEXT NOT NULL,
            fingerprint BLOB NOT NULL
        )
        """
    )
    # In the order of an index: no sort, and no more than one trace in memory.
    rows = db.execute("SELECT trace_id, zone, fingerprint FROM steps WHERE fingerprint IS NOT NULL ORDER BY trace_id")
    made = []
    for trace_id, steps in groupby(rows, key=itemgetter(0)):
        if (summary := of_blobs((zone, blob) for _, zone, blob in steps)).steps:
            made.append((trace_id, *summary.row()))
    for row in made:
        db.execute(INSERT_SUMMARY, row)


@migrations()
def m003_search_in_thoughts_and_views(db: Database) -> None:
    messages = db.table("messages")
    messages.disable_fts()
    # Computed when it is read: the record itself stays in `extra`, and nothing is kept twice.
    db.execute(
        "ALTER TABLE messages ADD COLUMN reasoning TEXT "
        "GENERATED ALWAYS AS (json_extract(extra, '$.reasoning')) VIRTUAL"
    )
    messages.enable_fts(["content", "reasoning"], create_triggers=True, tokenize=SEARCH_TOKENS)
    for statement in _VIEWS:
        db.execute(statement)


@migrations()
def m004_traffic_and_discovery(db: Database) -> None:
    db.executescript(
        """
        CREATE TABLE fingerprints (
            id INTEGER PRIMARY KEY,
            model TEXT NOT NULL,
            request_id TEXT NOT NULL,
            decode_step INTEGER NOT NULL,
            created INTEGER NOT NULL,
            fingerprint BLOB NOT NULL,
            zone TEXT,
            phase TEXT,
            sink_mass REAL,
            drift REAL,
            ripple REAL,
            moe TEXT,
            UNIQUE(model, request_id, decode_step)
        );
        CREATE TABLE sessions (
            model TEXT NOT NULL,
            request_id TEXT NOT NULL,
            first_created INTEGER NOT NULL,
            last_created INTEGER NOT NULL,
            fingerprints INTEGER NOT NULL,
            max_drift REAL,
            PRIMARY KEY(model, request_id)
        ) WITHOUT ROWID;
        CREATE INDEX sessions_created ON sessions(last_created);
        CREATE TABLE discovery_runs (
            run_id TEXT PRIMARY KEY,
            created INTEGER NOT NULL,
            model TEXT NOT NULL,
            origin TEXT NOT NULL,
            unit TEXT NOT NULL,
            n INTEGER NOT NULL,
            clusters INTEGER NOT NULL,
            noise REAL NOT NULL,
            seconds REAL NOT NULL,
            parameters TEXT NOT NULL,
            path TEXT NOT NULL
        );
        CREATE TABLE clusters (
            run_id TEXT NOT NULL REFERENCES discovery_runs(run_id) ON DELETE CASCADE,
            cluster_id INTEGER NOT NULL,
            name TEXT NOT NULL,
            size INTEGER NOT NULL,
            zone TEXT NOT NULL,
            traits TEXT NOT NULL,
            radius REAL NOT NULL,
            medoid BLOB NOT NULL,
            PRIMARY KEY(run_id, cluster_id)
        );
        CREATE VIEW latest_clusters AS
            SELECT c.cluster_id, c.name, c.size, round(1.0 * c.size / r.n, 4) AS share, c.zone, c.traits, r.model,
                datetime(r.created / 1000, 'unixepoch') AS created_utc
            FROM clusters c JOIN discovery_runs r USING (run_id)
            WHERE r.created = (SELECT max(created) FROM discovery_runs) ORDER BY c.cluster_id;
        """
    )


_VIEWS = (
    "DROP VIEW zone_counts",
    """
    CREATE VIEW zone_counts AS
        SELECT trace_id, zone, count(*) AS steps,
            round(1.0 * count(*) / sum(count(*)) OVER (PARTITION BY trace_id), 4) AS share
        FROM steps WHERE zone IS NOT NULL GROUP BY trace_id, zone
    """,
    """
    CREATE VIEW trace_list AS
        SELECT t.id, datetime(t.created / 1000, 'unixepoch') AS created_utc, t.model, t.title, t.tokens,
            t.dominant_zone, t.avg_entropy, t.max_drift, t.complete, s.local, s.mid, s.long, s.bin_entropy
        FROM traces t LEFT JOIN trace_summaries s ON s.trace_id = t.id
    """,
    """
    CREATE VIEW zone_timeline AS
        SELECT steps.trace_id, steps.output_index, tokens.text, steps.layer, steps.zone,
            round(steps.confidence, 4) AS confidence, steps.local, steps.mid, steps.long, steps.bin_entropy
        FROM steps LEFT JOIN tokens USING (trace_id, output_index)
    """,
    """
    CREATE VIEW model_summary AS
        SELECT t.model, count(*) AS traces, sum(t.tokens) AS tokens, avg(s.local) AS local, avg(s.mid) AS mid,
            avg(s.long) AS long, avg(s.bin_entropy) AS bin_entropy, max(t.max_drift) AS max_drift
        FROM traces t LEFT JOIN trace_summaries s ON s.trace_id = t.id GROUP BY t.model
    """,
)

INSERT_SUMMARY = (
    "INSERT OR REPLACE INTO trace_summaries "
    "(trace_id, steps, local, mid, long, bin_entropy, zone_counts, fingerprint) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)

STEPS = frozenset(
    step.__name__
    for step in (m001_traces, m002_trace_summaries, m003_search_in_thoughts_and_views, m004_traffic_and_discovery)
)
