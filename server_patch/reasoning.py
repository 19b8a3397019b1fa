"""Main process: how the answers of a request think, asked of SGLang's own reasoning parser (`--reasoning-parser`)."""

from __future__ import annotations

from typing import Any

from geomcli.server_patch import faults
from geomcli.server_patch.think import Thinking

THINKING_ATTRIBUTE = "_geom_thinking"
_TAIL = 64  # tokens of a prompt that its last mark and the white space behind it fit in


def of_chat(serving: Any, request: Any) -> list[Thinking] | None:
    """What SGLang's chat endpoint will make of this request's answers; None without a reasoning parser."""
    if not (name := getattr(serving, "reasoning_parser", None)):
        return None
    try:
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        force = serving.template_manager.force_reasoning or serving._get_reasoning_from_request(request)
        parser = ReasoningParser(name, True, force, request, tokenizer=serving.tokenizer_manager.tokenizer)
        return [_thinking(parser.detector, bool(parser.detector._in_reasoning))]
    except Exception:
        faults.report("the reasoning parser could not be asked; the answer carries no thinking")
        return None


def of_prompt(manager: Any, obj: Any) -> list[Thinking] | None:
    """For each prompt without messages; SGLang divides no answer to those.

    It thinks from the start if the prompt ends with the start mark, or the request says so (`require_reasoning`).
    """
    try:
        if not (name := _parser_name(manager)):
            return None
        from sglang.srt.parser.reasoning_parser import ReasoningParser

        detector = ReasoningParser(name, True, False, tokenizer=manager.tokenizer).detector
        forced = bool(getattr(obj, "require_reasoning", False))
        return [_thinking(detector, forced or _opens(detector, end)) for end in _ends(manager.tokenizer, obj)]
    except Exception:
        faults.report("the reasoning parser could not be asked; the answer carries no thinking")
        return None


def _parser_name(manager: Any) -> str | None:
    value_of = getattr(manager, "config_value", None)
    name = value_of("reasoning_parser") if value_of else getattr(manager.server_args, "reasoning_parser", None)
    return None if name in (None, "auto") else str(name)


def _thinking(detector: Any, started: bool) -> Thinking:
    return Thinking(
        start=detector.think_start_token + detector.think_start_self_label,
        end=detector.think_end_token,
        started=started,
        tool_start=detector.tool_start_token or "",
        tool_at_line_start=bool(getattr(detector, "tool_start_at_line_start", False)),
    )


def _opens(detector: Any, end_of_prompt: str) -> bool:
    return end_of_prompt.rstrip().endswith(detector.think_start_token)


def _ends(tokenizer: Any, obj: Any) -> list[str]:
    """The last words of each prompt of the request."""
    text, ids = getattr(obj, "text", None), getattr(obj, "input_ids", None)
    if text is not None:
        return [text] if isinstance(text, str) else list(text)
    if ids is None or tokenizer is None:
        return [""]
    prompts = ids if ids and isinstance(ids[0], list) else [ids]
    return [tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False) for prompt in prompts]
