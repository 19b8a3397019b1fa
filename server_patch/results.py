"""Scheduler process: one value per output token onto SGLang's customized_info, aligned with the committed tokens.

A captured token's value holds the bytes of its records, any other token's of an asking request its step and id (the
main process needs the ids to decode text). Runs before SGLang appends the tokens, so the index of a value is the index
of its token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from geomcli.server_patch import faults, transport
from geomcli.server_patch.request_state import RequestState, population, state_of
from geomcli.server_patch.values import CAPTURED, FAILED, INFO_KEY, STOPPED


class Due(NamedTuple):
    """One output token that is about to be committed."""

    row: int
    request: Any
    state: RequestState
    output_index: int


class RowRecords(NamedTuple):
    """What a step says about one row; see values.Sent."""

    records: bytes
    heads: bytes | None
    routing: bytes | None


_NOTHING = RowRecords(b"", None, None)


def routing_of(step: Any, due: Due) -> bytes | None:
    """Of the experts of its row; None unless it asks for them and the step has them."""
    if step.routing is None or not due.state.options.moe_layers:
        return None
    data: bytes = step.routing[due.row].numpy().tobytes()
    return data


def before_process_prefill(_processor: Any, batch: Any, result: Any) -> None:
    _process(batch, result, prefill=True)


def before_process_decode(_processor: Any, batch: Any, result: Any) -> None:
    _process(batch, result, prefill=False)


def _process(batch: Any, result: Any, *, prefill: bool) -> None:
    """Never raises: what runs here runs in the scheduler's loop, where an exception ends the server."""
    if not population.count:
        return
    try:
        asking = [(row, req, s) for row, req in enumerate(batch.reqs) if (s := state_of(req)) is not None]
        if not asking:
            return
        token_ids, step = _results(result)
    except Exception:
        faults.report("a step's results could not be read")
        return
    live: list[tuple[int | None, Due]] = []
    for row, req, state in asking:
        try:
            if not _uncommitted(req, prefill):
                token_id = None if token_ids is None else int(token_ids[row])
                live.append((token_id, Due(row, req, state, len(req.output_ids))))
        except Exception:
            # The value that is missing now is padded with None by the next one, or counted by the main process.
            faults.report("a token has no entry")
    found = _rows([one for token, one in live if token is not None and one.state.captures(one.output_index)], step)
    flags = getattr(step, "flags", ())
    for token_id, one in live:
        try:
            _append(one, None if token_id is None else sent(token_id, one, found, flags))
        except Exception:
            faults.report("a token has no entry")


def _results(result: Any) -> tuple[list[int] | None, Any]:
    """Token ids and the step that was captured; None for what cannot be read, so that every token is marked as lost."""
    try:
        if result.copy_done is not None:
            result.copy_done.synchronize()
        token_ids = result.next_token_ids
        token_ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        return token_ids, _step(transport.output_of(result))
    except Exception:
        faults.report("a step's results could not be read")
        return None, None


def _step(output: Any) -> Any:
    """Our own among the auxiliary outputs of a step."""
    if output is None or hasattr(output, "rows_of"):
        return output
    return next((found for part in getattr(output, "outputs", ()) if (found := _step(part)) is not None), None)


def _rows(due: list[Due], step: Any) -> Mapping[int, RowRecords]:
    """Records of captured tokens by row; what is missing failed."""
    # Where a step was lost, that was said; a request for no tokens at all has none.
    if not due or step is None:
        return {}
    try:
        found: Mapping[int, RowRecords] = step.rows_of(due)
        return found
    except Exception:
        faults.report("the records of a step could not be read")
        return {}


def _uncommitted(req: Any, prefill: bool) -> bool:
    """Whether SGLang will drop this row's token; the conditions are those of its own result loop."""
    return bool(
        req.finished()
        or req.is_retracted
        or (prefill and req.inflight_middle_chunks > 0)
        or getattr(req, "discard_output_reason", None)
    )


def _append(due: Due, value: tuple[Any, ...] | None) -> None:
    req = due.request
    if req.customized_info is None:
        req.customized_info = {}
    values = req.customized_info.setdefault(INFO_KEY, [])
    values.extend([None] * (due.output_index - len(values)))
    values.append(value)


def sent(token_id: int, due: Due, found: Mapping[int, RowRecords], flags: tuple[str, ...]) -> tuple[Any, ...]:
    """The token's Sent as a plain tuple, as far as it differs from Sent's defaults."""
    row, req, state, index = due
    if not state.captures(index):
        if not state.stops_at(index):
            return index + 1, token_id
        kind, (records, heads, routing) = STOPPED, _NOTHING
    elif (of_row := found.get(row)) is None:
        kind, (records, heads, routing) = FAILED, _NOTHING
    else:
        kind, (records, heads, routing) = CAPTURED, of_row
    request = (state.encoded, len(req.origin_input_ids), state.stamp)
    thinking = bool(getattr(req, "require_reasoning", False)) and not getattr(req, "_is_reasoning_over", False)
    prompt_ids = list(req.origin_input_ids) if index == 0 and state.options.prompt_tokens else None
    if heads is None and prompt_ids is None and routing is None:
        return index + 1, token_id, kind, request, thinking, flags, records
    return index + 1, token_id, kind, request, thinking, flags, records, heads, prompt_ids, routing
