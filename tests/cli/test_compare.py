"""`geom compare`: files, stored traces and stdin; sections for people, stable keys for programs, a verdict for CI."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from geomcli import jsonl
from geomcli.store import Store
from geomcli.store_queries import AXES_TRACES
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, LONG, MID, entry, records


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    a.write_text(jsonl.dump(made(["The", " photon"], LOCAL)), encoding="utf-8")
    b.write_text(jsonl.dump(made(["The", " photons"], LONG)), encoding="utf-8")
    return a, b


def made(texts: list[str], hist: object) -> list[dict[str, object]]:
    return records([entry(n, text, hist) for n, text in enumerate(texts, 1)])  # type: ignore[arg-type]


def geom(*arguments: object, env: dict[str, str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [str(GEOM), "compare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, input=stdin, timeout=60)


def test_for_a_person(home: dict[str, str], files: tuple[Path, Path]) -> None:
    done = geom(*files, env=home)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for said in (
        "Similarity 0.", "Differences (B against A", 'The texts part at #1 " photon" in A, #1 " photons" in B.',
        "Where the texts part", "≠", "Zones", "▂ syntax_floor", "Metrics", "long-range mass", "Attention by distance",
        "heuristic axes, not fitted", "Strong shift of B towards long-range retrieval", "█",
    ):  # fmt: skip
        assert said in done.stdout, said
    same = geom(files[0], files[0], env=home).stdout
    assert "Similarity 1.000" in same
    assert "None." in same
    assert "Where the texts part" not in same


def test_for_a_program(home: dict[str, str], files: tuple[Path, Path]) -> None:
    document = json.loads(geom(*files, "--json", env=home).stdout)
    assert list(document) == [
        "a", "b", "similarity", "same_tokens", "divergence", "zone_pairs", "agreement", "significance",
        "zones", "metrics", "histogram", "interpretation", "differences", "notes", "alignment",
    ]  # fmt: skip
    assert list(document["similarity"]) == ["overall", "direction", "zones", "entropy"]
    assert document["divergence"]["text_b"] == " photons"
    assert len(document["histogram"]["a"]) == 16
    assert document["interpretation"]["kind"] == "heuristic"
    assert document["significance"]["tested"] == 0
    assert {metric["verdict"] for metric in document["metrics"]} == {"untested"}


def test_noise_is_called_noise(home: dict[str, str], tmp_path: Path) -> None:
    """Two answers from one source, then one of another: in the sentences, the table and the JSON."""
    rng = np.random.default_rng(5)
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for path, weights in zip(paths, (LOCAL + MID, LOCAL + MID, LOCAL + 3 * LONG), strict=True):
        hists = rng.dirichlet(weights * 3 + 0.01, 60)
        answer = records([entry(n, f"t{n}", hist) for n, hist in enumerate(hists, 1)])
        path.write_text(jsonl.dump(answer), encoding="utf-8")
    alike, unlike = (geom(paths[0], other, env=home).stdout for other in paths[1:])
    assert "0 of 8 tested are larger than the noise of the steps; bootstrap, blocks of" in alike
    assert ", within the noise of the steps." in alike
    assert "] noise" in alike
    document = json.loads(geom(*paths[:2], "--json", env=home).stdout)
    assert {m["verdict"] for m in document["metrics"] if m["interval"]} == {"noise"}
    assert "more long-range mass (256 tokens back and more): 0." in unlike
    document = json.loads(geom(paths[0], paths[2], "--json", env=home).stdout)
    assert next(m for m in document["metrics"] if m["name"] == "long")["verdict"] == "clear"


def test_axes_are_fitted_on_stored_traces_of_the_model(
    home: dict[str, str], tmp_path: Path, files: tuple[Path, Path]
) -> None:
    db = tmp_path / "t.db"
    rng = np.random.default_rng(0)
    with Store(db) as store:
        for count in range(AXES_TRACES):
            if count == AXES_TRACES - 1:
                assert "heuristic axes, not fitted" in geom(*files, "--db", db, env=home).stdout
            store.add(made(["a"], rng.dirichlet(np.ones(16))))
        store.add(records([entry(1, "a", LOCAL)], model="another"))
    printed = geom(*files, "--db", db, env=home).stdout
    assert f"(principal components of {AXES_TRACES} stored traces of m)" in printed
    assert "% of variance" in printed
    found = json.loads(geom(*files, "--db", db, "--json", env=home).stdout)["interpretation"]
    assert (found["kind"], found["n"], found["models"]) == ("fitted", AXES_TRACES, ["m"])
    other = tmp_path / "other.jsonl"
    other.write_text(jsonl.dump(records([entry(1, "a", MID)], model="without-traces")), encoding="utf-8")
    for sides in ((files[0], other), (other, files[0])):
        assert f"{AXES_TRACES} stored traces of m)" in geom(*sides, "--db", db, env=home).stdout
    shares = [axis["explained"] for axis in found["axes"]]
    assert len(shares) == 4
    assert 0 < sum(shares) <= 1


def test_stored_traces_and_stdin(home: dict[str, str], tmp_path: Path, files: tuple[Path, Path]) -> None:
    db = tmp_path / "t.db"
    with Store(db) as store:
        trace_id = store.add(made(["The", " photon"], LOCAL))
    piped = geom("last", "-", "--db", db, "--json", env=home, stdin=files[0].read_text(encoding="utf-8"))
    assert piped.returncode == 0, piped.stderr
    assert json.loads(piped.stdout)["similarity"]["overall"] == 1
    assert json.loads(piped.stdout)["a"]["trace_id"] == trace_id


def test_a_verdict_for_continuous_integration(home: dict[str, str], files: tuple[Path, Path]) -> None:
    below = geom(*files, "--fail-under", "0.9", env=home)
    assert below.returncode == 4
    assert "is below --fail-under 0.9" in below.stderr
    assert "Similarity" in below.stdout
    assert geom(files[0], files[0], "--fail-under", "1", env=home).returncode == 0


def test_a_verdict_has_the_digits_to_see_it(home: dict[str, str], files: tuple[Path, Path]) -> None:
    overall = json.loads(geom(*files, "--json", env=home).stdout)["similarity"]["overall"]
    for bound in (round(overall, 3) + 0.001, overall + 1e-9):
        below = geom(*files, "--fail-under", repr(bound), env=home)
        assert below.returncode == 4
        found = re.search(r"The similarity ([0-9.]+) is below --fail-under ([0-9.]+)\.", below.stderr)
        assert found
        assert float(found[1]) < float(found[2])


def test_numbers_that_json_cannot_hold_are_null(home: dict[str, str], tmp_path: Path) -> None:
    """Readers of files leave such lines out; a store has what a server once sent."""
    db, plain = tmp_path / "t.db", tmp_path / "plain.jsonl"
    with Store(db) as store:
        store.add(records([entry(n, "a", LOCAL, drift=1e308, entropy_bits=-1e308, sink_mass=5e-324)
                           for n in range(1, 40)]))  # fmt: skip
    plain.write_text(jsonl.dump(made(["a"] * 40, LONG)), encoding="utf-8")
    for sides in (("last", "last"), ("last", plain), (plain, "last")):
        done = geom(*sides, "--json", "--db", db, env=home)
        assert (done.returncode, done.stderr) == (0, "")
        json.loads(done.stdout, parse_constant=pytest.fail)
        assert "nan" not in geom(*sides, "--db", db, env=home).stdout.replace("dominant", "")


def test_refusals(home: dict[str, str], tmp_path: Path, files: tuple[Path, Path]) -> None:
    empty, two = tmp_path / "empty.jsonl", tmp_path / "two.jsonl"
    empty.write_text("")
    two.write_text(files[0].read_text(encoding="utf-8") * 2, encoding="utf-8")
    for arguments, code, said in (
        ((files[0], tmp_path / "no.jsonl"), 1, "no.jsonl: No such file"),
        ((files[0], "no-such-id"), 1, "no trace 'no-such-id'"),
        ((files[0], empty), 1, "holds no trace"),
        ((files[0], two), 1, "holds 2 traces"),
        (("-", "-"), 2, "only one of the two can be stdin"),
        ((files[0],), 2, "Missing argument"),
        ((*files, "--fail-under", "2"), 2, "--fail-under"),
    ):
        done = geom(*arguments, env=home)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_a_broken_line_is_named_and_the_rest_is_compared(home: dict[str, str], files: tuple[Path, Path]) -> None:
    with files[1].open("a", encoding="utf-8") as stream:
        stream.write("{\n")
    done = geom(*files, env=home)
    assert done.returncode == 0
    assert "b.jsonl, line" in done.stderr


def test_what_a_model_wrote_does_not_act_on_the_terminal(home: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(jsonl.dump(made(["\x1b[2J[bold]", "b"], LOCAL)), encoding="utf-8")
    other = tmp_path / "y.jsonl"
    other.write_text(jsonl.dump(made(["c", "b"], LOCAL)), encoding="utf-8")
    done = geom(path, other, env=home)
    assert done.returncode == 0, done.stderr
    assert "\x1b[2J" not in done.stdout
    assert "[bold]" in done.stdout
    zoned = made(["\x1b[2J[bold]", "b"], LOCAL)
    for record in zoned:
        if record["record_type"] == "step":
            record["zone"] = "\x1b[2J"
    path.write_text(jsonl.dump(zoned), encoding="utf-8")
    done = geom(path, other, env=home)
    assert "␛[2J / syntax_floor" in done.stdout
    assert "\x1b" not in done.stdout
