"""`geom spans`: a table for people, sources and spans for programs, one sentence for what cannot be."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from geomcli import jsonl
from geomcli.store import Store
from geomcli.tui.app import DEMO_FILE
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, entry, records


def geom(*arguments: object, env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(GEOM), "spans", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, input=stdin, timeout=60)


def test_for_a_person(home: dict[str, str]) -> None:
    done = geom(DEMO_FILE, "--number", 2, env=home)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == [
        "tokens", "sentence", "sinks", "template", "user", "1", "assistant", "user", "2", "answer", "unseen",
    ]  # fmt: skip
    assert lines[1].startswith("  0:11  In the night, the moon's silver glow,")
    assert "unseen mass more" in done.stdout


def test_for_a_program(home: dict[str, str]) -> None:
    with Store(Path(home["XDG_DATA_HOME"]) / "geom" / "traces.db") as store:
        store.add(jsonl.read_file(DEMO_FILE).traces[1])
    done = geom("last", "--json", "--span", "0:5", "--source", "moon=93:101", "--layer", 18, "--with-sinks", env=home)
    document = json.loads(done.stdout)
    assert list(document) == ["sources", "spans"]
    assert [(s["name"], s["kind"]) for s in document["sources"]] == [
        ("template", "template"), ("user 1", "message"), ("assistant", "message"), ("moon", "given"),
        ("answer", "answer"),
    ]  # fmt: skip
    (span,) = document["spans"]
    assert list(span) == ["start", "end", "text", "phase", "read", "masses", "covered", "unseen", "lookback"]
    assert (span["start"], span["end"], span["text"], span["read"]) == (0, 5, "In the night, the", 5)
    assert sum(m["mass"] for m in span["masses"]) == pytest.approx(span["covered"])
    piped = geom("-", "--json", env=home, stdin=jsonl.dump(jsonl.read_file(DEMO_FILE).traces[1]))
    assert len(json.loads(piped.stdout)["spans"]) == 3


def test_what_cannot_be(home: dict[str, str], tmp_path: Path) -> None:
    plain = tmp_path / "plain.jsonl"
    plain.write_text(jsonl.dump(records([entry(1, "Hi", LOCAL)])), encoding="utf-8")
    done = geom(plain, env=home)
    assert (done.returncode, done.stdout) == (0, "")
    assert "This trace has no links" in done.stderr
    for arguments, said in (
        ((DEMO_FILE,), "holds 2 traces"),
        ((DEMO_FILE, "--number", 3), "holds 2 traces, not 3"),
        (("last", "--number", 1), "--number chooses"),
        ((DEMO_FILE, "--number", 1, "--layer", 5), "layer 5 was not captured"),
        ((DEMO_FILE, "--number", 1, "--span", "50:90"), "is no span of an answer of 52 tokens"),
        ((DEMO_FILE, "--number", 1, "--source", "x"), "names no source"),
        (("missing.jsonl",), "No such file"),
    ):
        done = geom(*arguments, env=home)
        assert done.returncode in (1, 2), arguments
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
