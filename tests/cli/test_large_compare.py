"""`geom compare` of large files, which two processes read: the same as of small ones, errors too."""

from __future__ import annotations

import json
import pickle
import subprocess
from pathlib import Path

import msgspec
import numpy as np
import pytest

from geomcli import jsonl
from geomcli.comparison import compare
from geomcli.errors import GeomError, ServerUnreachable, StoreError, TraceError, UsageError
from geomcli.schema import Record
from geomcli.trace import Trace
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, LONG, entry, records

STEPS = 6000


@pytest.fixture(scope="module")
def traces() -> list[list[Record]]:
    random = np.random.default_rng(0)
    made = []
    for name, shape in (("a", LOCAL), ("b", LONG)):
        hists = 0.7 * shape + 0.3 * random.dirichlet(np.ones(16), STEPS)
        words = random.choice([" the", " sky", " is", " blue", "."], STEPS)
        entries = [entry(n, str(word), hist) for n, (word, hist) in enumerate(zip(words, hists, strict=True), 1)]
        for step in entries:
            step["note"] = "x" * 400  # a field that no version of geom knows
        made.append(records(entries, trace_id=name))
    return made


@pytest.fixture
def files(traces: list[list[Record]], tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, trace in zip(paths, traces, strict=True):
        path.write_text(jsonl.dump(trace))
    assert sum(path.stat().st_size for path in paths) > 8 << 20
    return paths


def geom(*words: object, db: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([GEOM, "compare", *map(str, words), "--db", db], capture_output=True, text=True)


def test_two_processes_say_what_one_would(traces: list[list[Record]], files: list[Path], tmp_path: Path) -> None:
    done = geom(*files, "--json", db=tmp_path / "none.db")
    assert done.returncode == 0, done.stderr
    expected = msgspec.to_builtins(compare(*(Trace(trace) for trace in traces), fitted_on=["m"]))
    assert json.loads(done.stdout) == json.loads(json.dumps(expected))


@pytest.mark.parametrize("broken", [0, 1])
def test_a_file_that_cannot_be_read_is_named_whichever_it_is(files: list[Path], tmp_path: Path, broken: int) -> None:
    lines = files[broken].read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if '"index":3000' in line and '"token"' in line)
    del lines[at]
    files[broken].write_text("".join(lines))
    done = geom(*files, db=tmp_path / "none.db")
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert f"{files[broken].name}, line {at + 1}" in said.replace(" ,", ",")
    assert "try:" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("kind", [GeomError, UsageError, StoreError, TraceError, ServerUnreachable])
def test_an_error_comes_whole_out_of_another_process(kind: type[GeomError]) -> None:
    error = pickle.loads(pickle.dumps(kind("it cannot be.", "another way")))
    assert type(error) is kind
    assert (error.message, error.mend, str(error)) == (
        "it cannot be.",
        "another way",
        str(kind("it cannot be.", "another way")),
    )
