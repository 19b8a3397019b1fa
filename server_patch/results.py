"""Scheduler process: one value per output token onto SGLang's customized_info, aligned with the committed tokens.

A captured token gets an entry, any other token of an asking request its bare id (the main process needs the ids to
decode text). Runs before SGLang appends the tokens, so the index of a value is the index of its token.
"""

from __future__ import annotations

from typing import Any

from geomcli.server_patch import faults, transport
from geomcli.server_patch.entries import build_entry, error_entry, stopped_entry
from geomcli.server_patch.plans import RowPlan
from geomcli.server_patch.request_state import RequestState, state_of
from geomcli.server_patch.requests import INFO_KEY


def before_process_prefill(_processor: Any, batch: Any, result: Any) -> None:
    _process(batch, result, prefill=True)


def before_process_decode(_processor: Any, batch: Any, result: Any) -> None:
    _process(batch, result, prefill=False)


def _process(batch: Any, result: Any, *, prefill: bool) -> None:
    """Never raises: what runs here runs in the scheduler's loop, where an exception ends the server."""
    try:
        asking = [(row, req, s) for row, req in enumerate(batch.reqs) if (s := state_of(req)) is not None]
        if not asking:
            return
        token_ids, plans = _results(result)
    except Exception:
        faults.report("a step's results could not be read")
        return
    for row, req, state in asking:
        try:
            if not _uncommitted(req, prefill):
                _append(req, None if token_ids is None else int(token_ids[row]), state, plans.get(row))
        except Exception:
            # The value that is missing now is padded with None by the next one, or counted by the main process.
            faults.report("a token has no entry")


def _results(result: Any) -> tuple[list[int] | None, dict[int, RowPlan]]:
    """Token ids and filled plans by row; (None, {}) when they cannot be read, so that every token is marked as lost."""
    try:
        if result.copy_done is not None:
            result.copy_done.synchronize()
        token_ids = result.next_token_ids
        token_ids = token_ids.tolist() if hasattr(token_ids, "tolist") else list(token_ids)
        return token_ids, {plan.row: plan for plan in _plans(transport.output_of(result))}
    except Exception:
        faults.report("a step's results could not be read")
        return None, {}


def _plans(output: Any) -> list[RowPlan]:
    if hasattr(output, "row_plans"):
        plans: list[RowPlan] = output.row_plans()
        return plans
    return [plan for part in getattr(output, "outputs", ()) for plan in _plans(part)]


def _uncommitted(req: Any, prefill: bool) -> bool:
    """Whether SGLang will drop this row's token; the conditions are those of its own result loop."""
    return bool(
        req.finished()
        or req.is_retracted
        or (prefill and req.inflight_middle_chunks > 0)
        or getattr(req, "discard_output_reason", None)
    )


def _append(req: Any, token_id: int | None, state: RequestState, plan: RowPlan | None) -> None:
    output_index = len(req.output_ids)
    if req.customized_info is None:
        req.customized_info = {}
    values = req.customized_info.setdefault(INFO_KEY, [])
    values.extend([None] * (output_index - len(values)))
    value = None if token_id is None else _value(req, token_id, state, plan, output_index)
    if output_index == 0 and state.options.prompt_tokens and isinstance(value, dict):
        value["prompt_ids"] = list(req.origin_input_ids)
    values.append(value)


def _value(
    req: Any, token_id: int, state: RequestState, plan: RowPlan | None, output_index: int
) -> dict[str, Any] | int:
    if state.stops_at(output_index):
        return stopped_entry(_context(req, token_id, output_index), state)
    if not state.captures(output_index):
        return token_id
    context = _context(req, token_id, output_index)
    # The stamp: a plan made for another request or position must never be published under this token.
    if plan is None or plan.request is not req or plan.output_index != output_index or plan.error is not None:
        return error_entry(context, state)
    try:
        entry = build_entry(context, state, plan.statistics)
        entry["flags"].extend(plan.flags)
        return entry
    except Exception:
        faults.report("an entry could not be built")
        return error_entry(context, state)


def _context(req: Any, token_id: int, output_index: int) -> dict[str, Any]:
    prompt_len = len(req.origin_input_ids)
    thinking = getattr(req, "require_reasoning", False) and not getattr(req, "_is_reasoning_over", False)
    return {
        "decode_step": output_index + 1,
        "step": output_index + 1,
        "token_id": token_id,
        "query_position": prompt_len + output_index - 1,
        "prompt_len": prompt_len,
        "think_phase": "think" if thinking else "output",
    }
