"""Rows of glassbox: a trace for each request, every row kept, no token that no row speaks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from geomcli.errors import TraceError
from geomcli.importers import records_of
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.trace_import import import_traces


def glassbox_row(**more: Any) -> dict[str, Any]:
    return {
        "signal": "spectral", "request_id": 0, "layer": "model.layers.0.self_attn", "layer_idx": 0, "head": 0,
        "step": 4, "L": 12, "singular_values": [10.0, 5.0],
        "features": {"singular_values": [10.0, 5.0], "sv1": 10.0, "sv_ratio": 2.0}, **more,
    }  # fmt: skip


def test_glassbox(tmp_path: Path) -> None:
    rows = [
        glassbox_row(),
        glassbox_row(head=1),
        glassbox_row(signal="selfattn", tier="materialized", features={"attn_diag_logmean": -3.2}),
        glassbox_row(step=8, L=16, layer="model.layers.5.self_attn", layer_idx=5),
        glassbox_row(request_id=1, step=1, L=3, layer="odd", layer_idx=None),
    ]
    path = tmp_path / "svd.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Store(tmp_path / "t.db") as store:
        first, second = import_traces(store, records_of(str(path), []))
        assert [i.status for i in import_traces(store, records_of(str(path), []))] == ["identical"] * 2
        trace, other = (Trace(store.records(i.trace_id)) for i in (first, second))
    assert len(trace.tokens) == 8
    assert [step["tokenIndex"] for step in trace.steps] == [3, 7]
    step = trace.steps[0]
    assert (step["decode_step"], step["prompt_len"], step["query_position"]) == (4, 9, 11)
    assert "fingerprint" not in step
    assert step["flags"] == ["no_attention"]
    assert step["glassbox"]["spectral"]["0"]["1"]["features"]["sv_ratio"] == 2.0
    assert step["glassbox"]["selfattn"]["0"]["0"] == {
        "L": 12, "singular_values": [10.0, 5.0], "features": {"attn_diag_logmean": -3.2}, "tier": "materialized",
    }  # fmt: skip
    assert trace.header["imported"] == {"format": "glassbox", "file": "svd.jsonl"}
    assert other.steps[0]["glassbox"]["spectral"]["odd"]["0"]["L"] == 3


def test_glassbox_of_an_older_release_and_a_broken_one(tmp_path: Path) -> None:
    row = glassbox_row(feature_group="scores_matrix")
    del row["signal"]
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert Trace(records_of(str(path), [])).steps[0]["glassbox"].keys() == {"scores_matrix"}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row)[:50])
    with pytest.raises(TraceError, match=r"old.jsonl, line 2: no row of glassbox"):
        list(records_of(str(path), []))


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def refused(path: Path) -> TraceError:
    with Store(path.parent / "refused.db") as store:
        with pytest.raises(TraceError, match=path.name) as caught:
            import_traces(store, records_of(str(path), []))
        assert store.rows("SELECT count(*) AS n FROM traces") == [{"n": 0}]
    assert caught.value.mend
    return caught.value


def test_requests_with_equal_rows_are_traces_of_their_own(tmp_path: Path) -> None:
    path = written(tmp_path / "x.jsonl", *(glassbox_row(request_id=n) for n in (0, 1, "1")))
    with Store(tmp_path / "t.db") as store:
        made = import_traces(store, records_of(str(path), []))
        assert [trace.status for trace in made] == ["added"] * 3
        requests = [next(store.records(trace.trace_id))["capture"] for trace in made]
    assert [request["glassbox_request_id"] for request in requests] == [0, 1, "1"]


@pytest.mark.parametrize(
    "second", [{"L": 13}, {"features": {"sv1": 1.0}}, {"layer": "model.layers.0.cross_attn"}, {"tier": "materialized"}]
)
def test_no_row_takes_the_place_of_another(tmp_path: Path, second: dict[str, Any]) -> None:
    path = tmp_path / "x.jsonl"
    error = refused(written(path, glassbox_row(), glassbox_row(head=1), glassbox_row(**second)))
    assert "lines 1 and 3: two rows of request 0, step 4, layer 0, head 0, signal 'spectral'" in error.message
    same = Trace(records_of(str(written(path, glassbox_row(), glassbox_row())), []))
    assert list(same.steps[0]["glassbox"]["spectral"]["0"]) == ["0"]


def test_a_step_is_no_reason_for_a_million_tokens(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    assert (
        "line 2: step 1,000,000 of request 0"
        in refused(written(path, glassbox_row(request_id="a"), glassbox_row(step=1_000_000, L=1_000_010))).message
    )
    refused(written(path, *(glassbox_row(request_id=n, step=9_000) for n in range(3))))
    sparse = [glassbox_row(step=n, L=n + 8) for n in range(10_000, 20_000, 100)]
    assert len(Trace(records_of(str(written(path, *sparse)), [])).tokens) == 19_900


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"layer_idx": 2**70}, "layer_idx"),
        ({"layer_idx": -1}, "layer_idx"),
        ({"request_id": 2**70}, "request_id"),
        ({"step": 0}, "step"),
        ({"L": -1}, r"\$\.L"),
    ],
)
def test_numbers_that_cannot_be(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    error = refused(written(tmp_path / "x.jsonl", glassbox_row(), glassbox_row(**more)))
    assert "line 2: no row of glassbox" in error.message
    assert said.replace("\\", "") in error.message


@pytest.mark.parametrize("line", [b'{"a":"\xff"}', b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_a_first_line_that_is_no_json_is_no_row(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(line + b"\n")
    assert "holds no trace: line 1" in refused(path).message
