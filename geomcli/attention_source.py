"""Where the rows of a dump of attention stand, and whether they are rows; docs/traces.md has the layouts.

Knows nothing of traces: `attention_dumps` makes those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import TraceError

DOCS = "docs/traces.md, section Hugging Face, has a script that makes one"
_SOFTMAX = "save the rows behind the softmax; of a model with learned sinks, each divided by its sum"
_TOLERANCE = 0.02  # of a row's sum: 16-bit probabilities of a long row
_MOST = 999_999  # number of a layer or a step
_NAME = re.compile(r"attentions\.([0-9]+)(?:\.([0-9]+))?")

_Layer = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
_Milliseconds = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999)]  # to the end of the year 9999


class Meta(msgspec.Struct):
    """What a dump says beside its arrays."""

    prompt_len: int
    tokens: list[str | None] = []
    model: str = "unknown"
    messages: list[dict[str, str]] = []
    layers: list[_Layer] = []
    created: _Milliseconds = 0


class Arrays(Protocol):
    """Arrays by name, read when they are asked for; `meta`: the text beside them."""

    names: list[str]
    meta: str

    def shape(self, name: str) -> tuple[int, ...]: ...

    def array(self, name: str, index: int | None = None) -> NDArray[Any]: ...


def meta_of(arrays: Arrays, name: str) -> Meta:
    """What file `name` says beside its arrays; TraceError where that is not enough."""
    if not arrays.meta:
        raise TraceError(f"{name} has no `meta` that says where the prompt ends.", DOCS)
    try:
        meta = msgspec.json.decode(arrays.meta, type=Meta)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise TraceError(f"{name}, `meta`: {error}.", DOCS) from None
    if meta.prompt_len < 1:
        raise TraceError(f"{name}, `meta`: prompt_len must be at least 1, it is {meta.prompt_len}.", DOCS)
    if len(set(meta.layers)) < len(meta.layers):
        twice = next(layer for place, layer in enumerate(meta.layers) if layer in meta.layers[:place])
        raise TraceError(f"{name}, `meta`: layers names layer {twice} twice.", DOCS)
    return meta


class Source:
    """Where the row of a layer and a query stands: in one array, in one for each layer, or in one for each step.

    `layers`: their ids, ascending. `outputs`: how many tokens were written. TraceError says what does not fit.
    """

    def __init__(self, arrays: Arrays, meta: Meta, name: str) -> None:
        self._arrays, self._meta, self._file = arrays, meta, name
        self._stacked: dict[int, int] = {}  # layer: its place in the one array of all
        single: list[int] = []
        steps: dict[int, set[int]] = {}
        for array in arrays.names:
            if array == "attentions":
                shape = self._stacked_shape()
                self._stacked = {layer: place for place, layer in enumerate(meta.layers or range(shape[0]))}
            elif match := _NAME.fullmatch(array):
                numbers = [self._number(part, array) for part in match.groups() if part is not None]
                if len(numbers) == 2:
                    steps.setdefault(numbers[0], set()).add(numbers[1])
                else:
                    single.append(numbers[0])
        if steps and (single or self._stacked):
            raise TraceError(f"{name} holds whole sequences and steps; one of them has to go.", DOCS)
        if single and self._stacked:
            raise TraceError(f"{name} holds `attentions` of all layers and `attentions.LAYER`; one has to go.", DOCS)
        self.by_step = bool(steps)
        self.layers: list[int] = sorted(steps.get(0, ()) if steps else self._stacked or single)
        wrong = [n for n in range(len(steps)) if steps.get(n) != set(self.layers)]
        if wrong:
            lacks = "does not have the layers of step 0" if 0 in steps else "is missing; steps are numbered from 0"
            raise TraceError(f"{name}: step {wrong[0]} {lacks}.", DOCS)
        if not self.layers:
            there = f"; it has `{arrays.names[0][:60]}`" if arrays.names else ""
            raise TraceError(f"{name} has no `attentions`, `attentions.LAYER` or `attentions.STEP.LAYER`{there}.", DOCS)
        self.outputs = len(steps) or self._length() - meta.prompt_len
        if self.outputs < 1:
            raise TraceError(f"{name}: {self._length()} positions, and the prompt has {meta.prompt_len}.", DOCS)
        positions = meta.prompt_len + self.outputs
        if meta.tokens and len(meta.tokens) != positions:
            raise TraceError(
                f"{name}, `meta`: tokens has {len(meta.tokens)} texts; prompt and answer have {positions} positions.",
                "a text or null for each position, or no `tokens` at all",
            )

    def rows(self, layer: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
        """(position m of the query, probabilities [heads, m + 1]) of each output token.

        A row of zeros is a head that took no part: its query was padding, or a head mask took it out.
        """
        whole = None if self.by_step else self._matrix(layer)
        for output in range(self.outputs):
            position = self._meta.prompt_len + output - 1
            if whole is None:
                row = self._step_row(output, layer)
                if row.shape[1] != position + 1:
                    raise TraceError(
                        f"{self._file}, step {output}, layer {layer}: {row.shape[1]} keys, not {position + 1}.", DOCS
                    )
            else:
                row = whole[:, position].astype(np.float64)
            self._check(row, layer, position)
            yield position, np.clip(row[:, : position + 1], 0.0, None)

    def _step_row(self, output: int, layer: int) -> NDArray[np.float64]:
        step = self._sequence(f"attentions.{output}.{layer}")
        return step[:, -1].astype(np.float64)

    def _check(self, row: NDArray[np.float64], layer: int, position: int) -> None:
        finite = np.isfinite(row).all(axis=1)
        sums = row[:, : position + 1].sum(axis=1)
        wrong = ~finite | (row.min(axis=1) < -_TOLERANCE)
        if not wrong.any():
            if np.abs(row[:, position + 1 :]).sum(axis=1).max() > _TOLERANCE:
                raise TraceError(
                    f"{self._file}, layer {layer}: position {position} looks at later ones; this is not causal.", DOCS
                )
            wrong = (np.abs(sums - 1) > _TOLERANCE) & (row != 0).any(axis=1)
        if wrong.any():
            head = int(np.argmax(wrong))
            least = f", its least number is {row[head].min():.3g}" if row[head].min() < -_TOLERANCE else ""
            raise TraceError(
                f"{self._file}, layer {layer}, head {head}, row {position}: these are no probabilities, their sum is "
                f"{sums[head]:.3g} and not 1{least}.",
                _SOFTMAX,
            )

    def _matrix(self, layer: int) -> NDArray[Any]:
        stacked = layer in self._stacked
        made = self._sequence("attentions", self._stacked[layer]) if stacked else self._sequence(f"attentions.{layer}")
        if made.shape[1] != made.shape[2] or made.shape[1] != self._length():
            raise TraceError(f"{self._file}, layer {layer}: shape {made.shape}, not (heads, T, T).", DOCS)
        return made

    def _sequence(self, name: str, place: int | None = None) -> NDArray[Any]:
        """The one sequence [heads, queries, keys] of an array."""
        array = self._arrays.array(name, place)
        made = array[0] if array.ndim == 4 and array.shape[0] == 1 else array
        if made.ndim == 3 and 0 not in made.shape:
            return made
        mend = "one sequence of the batch: attentions[layer][:1]" if made.ndim == 4 else DOCS
        raise TraceError(
            f"{self._file}: `{name}` has an array of shape {array.shape}, not (heads, queries, keys).", mend
        )

    def _stacked_shape(self) -> tuple[int, ...]:
        shape = self._arrays.shape("attentions")
        if len(shape) not in (4, 5) or shape[0] > _MOST:
            raise TraceError(f"{self._file}: `attentions` has shape {shape}, not (layers, heads, T, T).", DOCS)
        if self._meta.layers and len(self._meta.layers) != shape[0]:
            raise TraceError(f"{self._file}: {shape[0]} layers, and `meta` names {len(self._meta.layers)}.", DOCS)
        return shape

    def _length(self) -> int:
        name = "attentions" if self._stacked else f"attentions.{self.layers[0]}"
        shape = self._arrays.shape(name)
        if len(shape) < 3 or shape[-1] != shape[-2]:
            raise TraceError(f"{self._file}: `{name}` has shape {shape}, not (heads, T, T).", DOCS)
        return shape[-1]

    def _number(self, text: str, array: str) -> int:
        if len(text) > len(str(_MOST)) or (text[0] == "0" and text != "0"):
            raise TraceError(
                f"{self._file}: the array {array[:60]} has no number of a layer or step in its name: those are 0 to "
                f"{_MOST:,}, without zeros in front.",
                DOCS,
            )
        return int(text)
