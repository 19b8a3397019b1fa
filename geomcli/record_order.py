"""Whether a record fits behind the ones before it; a few numbers, however long the trace.

A line that is lost (it was damaged, or a header was) shows in what follows: tokens that begin again, or a hole.
"""

from __future__ import annotations

from geomcli.schema import Record

_NO_LAYER = -1  # a step that names no layer and one of layer -1 are the same to the store


class RecordOrder:
    """Where in a trace the reading is; give it the records of an input in their order.

    `trace_id`: of the trace; `ended`: whether its metrics came; `lost`: number of its first line that was no record, 0
    without one.
    """

    lost: int

    def __init__(self) -> None:
        self._begin("")
        self.ended = True  # before the first header there is no trace that goes on

    def lose(self, number: int) -> None:
        """A line was no record: behind the end of a trace it may have been the header of the next."""
        self.lost = self.lost or number
        self._headless = self.ended

    def wrong_with(self, record: Record) -> str:
        """What contradicts the records before, or an empty string."""
        kind = record["record_type"]
        if kind == "header":
            self._begin(record["trace_id"])
        elif self._headless:
            return "a record behind the end of its trace"
        elif kind == "token":
            if record["index"] != self._tokens:
                there = "is there twice" if record["index"] < self._tokens else f"comes where {self._tokens} should"
                return f"token {record['index']} {there}"
            self._tokens += 1
        elif kind == "step":
            layer = record.get("layer_id")
            return self._wrong_with_step(record["tokenIndex"], _NO_LAYER if layer is None else layer)
        elif kind == "metrics":
            if self.ended:
                return "a second `metrics` of one trace"
            self.ended = True
        return ""

    def _begin(self, trace_id: str) -> None:
        self.trace_id, self.ended, self.lost = trace_id, False, 0
        self._headless = False  # whether a header may be among the lines that were lost
        self._tokens, self._step = 0, -1  # tokens so far; token of the last step
        self._layers: set[int] = set()  # of the steps of that token

    def _wrong_with_step(self, token: int, layer: int) -> str:
        if token >= self._tokens:
            return f"a step of token {token}, which is not in front of it"
        if token < self._step:
            return f"a step of token {token} behind one of token {self._step}"
        if token > self._step:
            self._step, self._layers = token, set()
        if layer in self._layers:
            return f"a second step of token {token} for the same layer"
        self._layers.add(layer)
        return ""
