"""Whether a record fits behind the ones before it; a few numbers, however long the trace.

A line that is lost (it was damaged, or a header was) shows in what follows: tokens that begin again, or a hole.
"""

from __future__ import annotations

from geomcli.schema import Record


class RecordOrder:
    """Where in a trace the reading is; give it the records of an input in their order."""

    _tokens: int
    _step: int
    _layers: set[int | None]
    _ended: bool

    def __init__(self) -> None:
        self._begin()

    def wrong_with(self, record: Record) -> str:
        """What contradicts the records before, or an empty string."""
        kind = record["record_type"]
        if kind == "header":
            self._begin()
        elif kind == "token":
            if record["index"] != self._tokens:
                there = "is there twice" if record["index"] < self._tokens else f"comes where {self._tokens} should"
                return f"token {record['index']} {there}"
            self._tokens += 1
        elif kind == "step":
            return self._wrong_with_step(record["tokenIndex"], record.get("layer_id"))
        elif kind == "metrics":
            if self._ended:
                return "a second `metrics` of one trace"
            self._ended = True
        return ""

    def _begin(self) -> None:
        self._tokens, self._ended = 0, False
        self._step = -1  # token of the last step
        self._layers = set()  # of the steps of that token

    def _wrong_with_step(self, token: int, layer: int | None) -> str:
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
