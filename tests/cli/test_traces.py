"""`geom traces`: lists that pipe, files that come back, removal that asks first."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geomcli import jsonl
from geomcli.store import Store
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, LONG, MID, cache_fields, entry, evicted, records


@pytest.fixture
def db(tmp_path: Path, home: dict[str, str]) -> Path:
    path = tmp_path / "t.db"
    with Store(path) as store:
        for n, (name, hist) in enumerate((("one", LOCAL), ("two", LONG), ("three", MID))):
            made = records(
                [entry(1, f"photon{n}", hist)],
                messages=[{"role": "user", "content": f"Say [bold]{name}[/]"}],
                trace_id=f"trace-{name}",
                model="m" if n else "other",
            )
            made[0]["created"] = n * 86_400_000
            store.add(made)
    home["GEOM_DB"] = str(path)
    return path


def geom(*arguments: object, env: dict[str, str], stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(GEOM), "traces", *map(str, arguments)]
    given = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, timeout=60, **given)  # type: ignore[call-overload,no-any-return]


def ids(*arguments: object, env: dict[str, str]) -> list[str]:
    done = geom(*arguments, "-q", env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.usefixtures("db")
def test_lists(home: dict[str, str]) -> None:
    assert ids("ls", env=home) == ["trace-three", "trace-two", "trace-one"]
    assert ids("ls", "--zone", "long_range", env=home) == ["trace-two"]
    assert ids("ls", "--model", "m", "--limit", 1, env=home) == ["trace-three"]
    assert ids("ls", "--until", "1970-01-01T12:00+00:00", env=home) == ["trace-one"]
    assert ids("ls", "--since", "7d", env=home) == []
    assert "No such traces." in geom("ls", "--since", "7d", env=home).stderr
    rows = json.loads(geom("ls", "--json", env=home).stdout)
    assert all(row["complete"] is True for row in rows)
    assert [row["dominant_zone"] for row in rows] == ["semantic_bridge", "long_range", "syntax_floor"]
    for arguments, said in ((("--zone", "x"), "there is no zone 'x'"), (("--since", "x"), "'x' is no time")):
        refused = geom("ls", *arguments, env=home)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert said in refused.stderr


@pytest.mark.usefixtures("db")
def test_search(home: dict[str, str]) -> None:
    assert ids("search", "photon1", env=home) == ["trace-two"]
    assert sorted(ids("search", "photon*", "--model", "m", env=home)) == ["trace-three", "trace-two"]
    shown = geom("search", "two", env=home).stdout
    assert "trace-two\t" in shown
    assert "user Say [bold]two[/]" in shown
    (row,) = json.loads(geom("search", "two", "--json", env=home).stdout)
    assert (row["role"], row["snippet"]) == ("user", "Say [bold]two[/]")
    nothing = geom("search", "neutrino", env=home)
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "Nothing found." in nothing.stderr
    assert "no word to look for" in geom("search", '"', env=home).stderr


def test_from_a_list_through_a_file_into_another_store(home: dict[str, str], db: Path, tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.jsonl.zst"):
        out = tmp_path / name
        done = geom("export", "-", "-o", out, env=home, stdin="trace-two\ntrace-one\n")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        again = geom("import", out, "--db", tmp_path / f"{name}.db", env=home)
        assert again.returncode == 0, again.stderr
        assert again.stdout.split() == ["trace-two", "trace-one"]
        assert "trace-two: imported" in again.stderr
        other = {**home, "GEOM_DB": str(tmp_path / f"{name}.db")}
        assert geom("export", "trace-two", "trace-one", env=other).stdout == (
            geom("export", "trace-two", "trace-one", env=home).stdout
        )
    assert (tmp_path / "x.jsonl.zst").read_bytes()[:4] == b"\x28\xb5\x2f\xfd"
    text = geom("export", "trace-one", env=home).stdout
    same = geom("import", "-", env=home, stdin=text)
    assert "trace-one: was there already, the same" in same.stderr
    assert geom("import", "-q", "-", env=home, stdin=text).stderr == ""


def test_another_trace_of_the_same_name(home: dict[str, str], db: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(jsonl.dump(records([entry(1, "other", LONG)], trace_id="trace-one")), encoding="utf-8")
    refused = geom("import", path, env=home)
    assert refused.returncode == 1
    assert "'trace-one' is in the store already; nothing was imported" in refused.stderr
    new = geom("import", "--as-new", path, env=home)
    assert "trace-one is another trace and stays" in new.stderr
    assert geom("import", "--replace", path, env=home).stdout == "trace-one\n"
    assert '"other"' in geom("export", "trace-one", env=home).stdout
    assert len(ids("ls", env=home)) == 4
    assert geom("import", "--replace", "--as-new", path, env=home).returncode == 2


def test_files_that_are_broken(home: dict[str, str], db: Path, tmp_path: Path) -> None:
    before = geom("ls", "--json", env=home).stdout
    good = jsonl.dump(records([entry(1, "a", LOCAL)], trace_id="new"))
    (tmp_path / "good.jsonl").write_text(good, encoding="utf-8")
    for name, text, said in (
        ("cut.jsonl", good[: len(good) // 2], "ends in the middle of line"),
        ("newer.jsonl", good.replace('"1.0"', '"2.0"'), "trace format 2.0; this geom reads 1.x"),
        ("corrupt.jsonl", good.replace('"token"', '"tok', 1), "nothing was imported"),
        ("empty.jsonl", "", "holds no trace"),
        ("binary.jsonl", "\0" * 1000, "holds no trace"),
        ("bytes.jsonl", '{"\udcff": 1}\n' + good, "holds no trace: line 1"),
        ("deep.jsonl", '{"x":' + "[" * 5000 + "]" * 5000 + "}\n" + good, "holds no trace: line 1"),
        ("layers.jsonl", good, "--layers chooses among the layers of a dump of attention"),
    ):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
        more = ["--layers", "0"] if name == "layers.jsonl" else []
        done = geom("import", path, *more, env=home)
        assert (done.returncode, done.stdout) == (2 if more else 1, ""), name
        assert "try: " in done.stderr, name
        assert said in done.stderr, name
        assert "Traceback" not in done.stderr
    missing = geom("import", tmp_path / "none.jsonl", env=home)
    assert "No such file" in missing.stderr
    assert "try: ls" in missing.stderr
    twice = geom("import", tmp_path / "good.jsonl", tmp_path / "good.jsonl", env=home)
    assert "'new' comes twice; nothing was imported" in twice.stderr
    assert "try: geom traces import" in twice.stderr
    assert geom("ls", "--json", env=home).stdout == before
    rescued = geom("import", "--skip-broken", tmp_path / "cut.jsonl", env=home)
    assert rescued.returncode == 0
    assert "Left out:" in rescued.stderr
    assert "cut off" in geom("ls", env=home).stdout
    whole = good.replace('"new"', '"cut"').splitlines(keepends=True)
    ended = geom("import", "-q", "-", env=home, stdin="".join(whole[:-1]))
    assert (ended.returncode, ended.stdout) == (0, "cut\n")
    assert ended.stderr == "stdin: trace 'cut' has no end: it was cut off, or is still being written.\n"


STEP = {"drift": 0.1, "zone_confidence": 0.5}


@pytest.mark.parametrize(
    ("step", "metrics", "said"),
    [
        ({"zone_confidence": None, "zone": None}, {}, "zones"),
        (STEP, {"maxDrift": None}, "max 0.100"),
        (STEP, {"compass": None}, "max 0.100 -"),
        (
            {"drift": 1e308, "zone_confidence": 1e308},
            {"maxDrift": 1e308, "tokensPerSecond": 1e308},
            "not enough tokens",
        ),
        (STEP, {"attentionBytes": None, "jsonBytes": None}, "entropy"),
        (STEP, {"attentionBytes": None, "jsonBytes": 7}, "bytes      7 B as JSON"),
        (STEP, {"attentionBytes": "gone", "jsonBytes": "gone", "compass": "gone", "maxDrift": "gone"}, "max 0.100 -"),
        (STEP, {"zoneCounts": {"x": 0}}, "none (only sinks"),
        (STEP, {"avgEntropy": "x", "avgEntropyBits": {"a": 1}}, "entropy    -"),
        (STEP, {"tokens": None, "finishReason": None}, "1 tokens"),
        (STEP | {"attention": {"layers": 5}, "layer_id": None}, {}, "layers -"),
    ],
)
def test_whatever_is_in_a_store_can_be_shown(
    home: dict[str, str], tmp_path: Path, step: dict[str, object], metrics: dict[str, object], said: str
) -> None:
    made = records([entry(1, "a", LOCAL)])
    found = next(record for record in made if record["record_type"] == "step")
    found |= step
    made[-1] |= metrics
    made[-1] = {name: value for name, value in made[-1].items() if value != "gone"}
    with Store(tmp_path / "odd.db") as store:
        store.add(made)
    shown = geom("show", "last", "--db", tmp_path / "odd.db", env=home)
    assert shown.returncode == 0, shown.stderr
    assert said in shown.stderr, shown.stderr


def test_ids_do_not_act_on_the_terminal(home: dict[str, str], tmp_path: Path) -> None:
    with Store(tmp_path / "odd.db") as store:
        for name in ("odd", "20261123-193012-a1b2c3"):
            store.add(records([entry(1, "a", LOCAL)], trace_id=name))
    with contextlib.closing(sqlite3.connect(tmp_path / "odd.db")) as raw, raw:
        raw.execute("UPDATE traces SET id = ? WHERE id = 'odd'", ("\x1b[2Jx\ny",))
    listed = geom("ls", "-q", "--db", tmp_path / "odd.db", env=home).stdout
    assert sorted(listed.splitlines()) == ["20261123-193012-a1b2c3", "␛[2Jx␊y"]


@pytest.mark.usefixtures("db")
def test_removal_without_a_terminal_wants_a_word(home: dict[str, str]) -> None:
    refused = geom("rm", "trace-one", env=home)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "removing 1 trace has to be confirmed" in refused.stderr
    assert "geom traces rm --yes" in refused.stderr
    unknown = geom("rm", "--yes", "trace-one", "nonsense", env=home)
    assert (unknown.returncode, len(ids("ls", env=home))) == (1, 3)
    done = geom("rm", "--yes", "-", env=home, stdin="trace-one\ntrace-two\ntrace-one\n")
    assert (done.returncode, done.stderr) == (0, "Removed 2 traces.\n")
    assert ids("ls", env=home) == ["trace-three"]
    assert geom("rm", "--yes", "-", env=home, stdin="").stderr == "Nothing to remove.\n"


@pytest.mark.usefixtures("db")
@pytest.mark.parametrize(("answer", "left", "code"), [("y\n", 2, 0), ("n\n", 3, 130), ("\n", 3, 130)])
def test_removal_on_a_terminal_asks(home: dict[str, str], answer: str, left: int, code: int) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(GEOM), "traces", "rm", "trace-one"], stdin=theirs, stdout=theirs, stderr=theirs, env=home
    )
    os.close(theirs)
    seen = b""
    while b"[y/N]" not in seen:
        seen += os.read(ours, 1000)
    assert b"trace-one" in seen
    os.write(ours, answer.encode())
    try:
        while os.read(ours, 1000):
            pass
    except OSError:
        pass  # its end closed
    assert process.wait(timeout=30) == code
    os.close(ours)
    assert len(ids("ls", env=home)) == left


def test_an_imported_trace_has_no_engine_and_no_end_to_miss(home: dict[str, str], tmp_path: Path) -> None:
    rows = np.tril(np.ones((1, 1, 5, 5))) / np.arange(1, 6)[:, None]
    np.savez(tmp_path / "dump.npz", meta=np.array(json.dumps({"prompt_len": 3})), attentions=rows)
    (made,) = ids("import", tmp_path / "dump.npz", env=home)
    said = geom("show", made, env=home).stderr
    assert "2 tokens · imported" in said
    assert "0 B" not in said


def kept_store(home: dict[str, str], tmp_path: Path, entries: list[dict[str, Any]]) -> None:
    with Store(tmp_path / "kept.db") as store:
        store.add(records(entries, trace_id="trace-kept"))
    home["GEOM_DB"] = str(tmp_path / "kept.db")


def test_tokens_that_left_the_cache_are_marked_where_a_trace_is_shown(home: dict[str, str], tmp_path: Path) -> None:
    kept_store(home, tmp_path, evicted())
    shown = geom("show", env=home)
    assert "conf  drift  left  looks at" in shown.stdout
    rows = {int(cells[0]): cells for line in shown.stdout.split("\n") if (cells := line.split()) and cells[0].isdigit()}
    # Position 11 is the second token; 13 and 14 are the fourth and the fifth.
    assert {n: cells[-1] for n, cells in rows.items() if n in (1, 3, 4)} == {1: "4", 3: "8", 4: "8"}
    assert all(not cells[-1].isdigit() for n, cells in rows.items() if n not in (1, 3, 4))
    assert "of the prompt 2 of 10 tokens left" in shown.stdout
    assert "16 of 21 tokens kept (76%), 5 slots freed" in shown.stderr
    said = json.loads(geom("show", "--json", env=home).stdout)
    tokens = {r["index"]: (r["kept"], r["leftAt"]) for r in said if r["record_type"] == "token"}
    assert {n: one for n, one in tokens.items() if one != (True, None)} == {1: (False, 4), 3: (False, 8), 4: (False, 8)}
    # What is derived is in no file.
    exported = geom("export", "last", env=home).stdout
    assert '"kept":16' in exported
    assert "leftAt" not in exported


def test_how_many_left_is_said_where_it_is_not_known_which(home: dict[str, str], tmp_path: Path) -> None:
    kept_store(home, tmp_path, [entry(n + 1, "a", LOCAL, **cache_fields(10 + n, n)) for n in range(3)])
    shown = geom("show", env=home)
    assert "which tokens left the KV cache is not known" in shown.stdout
    assert "10 of 12 tokens kept (83%), 2 slots freed" in shown.stderr
    tokens = [r for r in json.loads(geom("show", "--json", env=home).stdout) if r["record_type"] == "token"]
    assert {(r["kept"], r["leftAt"]) for r in tokens} == {(None, None)}


def test_where_nothing_leaves_nothing_is_said_of_it(home: dict[str, str], tmp_path: Path) -> None:
    kept_store(home, tmp_path, [entry(1, "a", LOCAL)])
    shown = geom("show", env=home)
    assert "left" not in shown.stdout
    assert "cache" not in shown.stderr
    assert "leftAt" not in geom("show", "--json", env=home).stdout
