"""Scheduler process: one value per output token onto SGLang's customized_info, aligned with the committed tokens.

A captured token gets an entry, any other token of an asking request its step and id (the main process needs the ids to
decode text). Runs before SGLang appends the tokens, so the index of a value is the index of its token.
"""

from __future__ import annotations

from typing import Any

from geomcli.server_patch import faults, transport
from geomcli.server_patch.arrivals import INFO_KEY
from geomcli.server_patch.entries import build_entries, error_entry, stopped_entry
from geomcli.server_patch.request_state import RequestState, state_of
from geomcli.server_patch.step_numbers import Due
from geomcli.server_patch.values import packed


def before_process_prefill(_processor: Any, batch: Any, result: Any) -> None:
    _process(batch, result, prefill=True)


def before_process_decode(_processor: Any, batch: Any, result: Any) -> None:
    _process(batch, result, prefill=False)


def _process(batch: Any, result: Any, *, prefill: bool) -> None:
    """Never raises: what runs here runs in the scheduler's loop, where an exception ends the server."""
    if not RequestState.alive:
        return
    try:
        asking = [(row, req, s) for row, req in enumerate(batch.reqs) if (s := state_of(req)) is not None]
        if not asking:
            return
        token_ids, output = _results(result)
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
    entries = _entries([(token, one) for token, one in live if one.state.captures(one.output_index)], output)
    for token_id, one in live:
        try:
            _append(one, _value(token_id, one, entries))
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
    if output is None or hasattr(output, "numbers"):
        return output
    return next((found for part in getattr(output, "outputs", ()) if (found := _step(part)) is not None), None)


def _entries(captured: list[tuple[int | None, Due]], step: Any) -> dict[int, dict[str, Any]]:
    """Entries of captured tokens by row; error entries when the step's numbers cannot be had."""
    known = [(token_id, one) for token_id, one in captured if token_id is not None]
    if not known:
        return {}
    contexts, due = [_context(token_id, one) for token_id, one in known], [one for _, one in known]
    entries = None
    try:
        # Where a step was lost, that was said; a request for no tokens at all has none.
        if step is not None:
            entries = build_entries(contexts, due, step.numbers(due))
    except Exception:
        faults.report("the entries of a step could not be built")
    if entries is None:
        entries = [error_entry(context, one.state) for context, one in zip(contexts, due, strict=True)]
    return {one.row: entry for one, entry in zip(due, entries, strict=True)}


def _uncommitted(req: Any, prefill: bool) -> bool:
    """Whether SGLang will drop this row's token; the conditions are those of its own result loop."""
    return bool(
        req.finished()
        or req.is_retracted
        or (prefill and req.inflight_middle_chunks > 0)
        or getattr(req, "discard_output_reason", None)
    )


def _append(due: Due, value: Any) -> None:
    req = due.request
    if req.customized_info is None:
        req.customized_info = {}
    values = req.customized_info.setdefault(INFO_KEY, [])
    values.extend([None] * (due.output_index - len(values)))
    values.append(value)


def _value(token_id: int | None, due: Due, entries: dict[int, dict[str, Any]]) -> tuple[Any, ...] | None:
    """The token's Value as a plain tuple; None for a token that was lost."""
    if token_id is None:
        return None
    stopped = due.state.stops_at(due.output_index)
    entry = stopped_entry(_context(token_id, due), due.state) if stopped else entries.get(due.row)
    if entry is None:
        return due.output_index + 1, token_id
    spelt = due.output_index == 0 and due.state.options.prompt_tokens
    return packed(entry, list(due.request.origin_input_ids) if spelt else None)


def _context(token_id: int, due: Due) -> dict[str, Any]:
    req, index = due.request, due.output_index
    thinking = getattr(req, "require_reasoning", False) and not getattr(req, "_is_reasoning_over", False)
    return {
        "decode_step": index + 1,
        "step": index + 1,
        "token_id": token_id,
        "query_position": due.query_position,
        "prompt_len": due.prompt_len,
        "think_phase": "think" if thinking else "output",
    }
