"""Thinking is divided from output as SGLang's own parsers divide it, in every release and for every parser named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from geomcli.server_patch.reasoning import _thinking
from geomcli.server_patch.think import Phases, Thinking
from tests.canary.reasoning import reasoning_parser
from tests.canary.releases import VERSIONS, definition, parameters

# Parser -> its marks, and whether it thinks from the start: always, when the request lets it, or only behind the mark.
PARSERS = {
    "qwen3": ("<think>", "</think>", "as asked"),
    "qwen3-thinking": ("<think>", "</think>", "always"),
    "deepseek-r1": ("<think>", "</think>", "always"),
    "deepseek-v3": ("<think>", "</think>", "as asked"),
    "kimi": ("◁think▷", "◁/think▷", "never"),
    "glm45": ("<think>", "</think>", "as asked"),
    "step3": ("<think>", "</think>", "always"),
    "minimax": ("<think>", "</think>", "always"),
    "minimax-append-think": ("<think>", "</think>", "as asked"),
}
TOOL_CALLS = {"qwen3", "qwen3-thinking", "deepseek-v3", "glm45", "minimax"}
words = st.text(st.sampled_from("ab <>/\n◁▷th"), max_size=8)


def detector_of(version: str, name: str, forced: bool) -> Any:
    return reasoning_parser(version)(name, True, forced).detector


def divided(thinking: Thinking, text: str) -> tuple[str, str]:
    """What is thinking and what is not, character by character."""
    phases = Phases(thinking)
    found = [phase for character in text for phase in phases.push(character)] + phases.finish()
    assert len(found) == len(text)
    parts = {phase: "".join(c for c, p in zip(text, found, strict=True) if p is phase) for phase in (True, False)}
    return parts[True], parts[False]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PARSERS)
def test_marks_and_beginnings_are_those_that_are_documented(name: str, version: str) -> None:
    start, end, begins = PARSERS[name]
    for forced in (True, False):
        detector = detector_of(version, name, forced)
        started = {"always": True, "never": False, "as asked": forced}[begins]
        tool = "<tool_call>" if name in TOOL_CALLS else ""
        assert _thinking(detector, detector._in_reasoning) == Thinking(start, end, started, tool)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_parser_takes_what_it_is_given(version: str) -> None:
    made = definition(version, "sglang.srt.parser.reasoning_parser.ReasoningParser.__init__")
    assert made is not None
    assert {"model_type", "stream_reasoning", "force_reasoning", "request", "tokenizer"} <= parameters(made)


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from([name for name in PARSERS if name != "minimax-append-think"]),
    forced=st.booleans(), opened=st.booleans(), close=st.sampled_from(["end", "tool", "nothing"]),
    inside=words, behind=words,
)  # fmt: skip
def test_an_answer_is_divided_as_sglang_divides_it(
    version: str, name: str, forced: bool, opened: bool, close: str, inside: str, behind: str
) -> None:
    detector = detector_of(version, name, forced)
    thinking = _thinking(detector, detector._in_reasoning)
    marks = [mark for mark in (thinking.start, thinking.end, thinking.tool_start) if mark]
    assume(not any(mark in inside for mark in marks))
    assume(close != "tool" or thinking.tool_start)
    closing = {"end": thinking.end, "tool": thinking.tool_start, "nothing": ""}[close]
    text = (thinking.start if opened else "") + inside + closing + (behind if close != "nothing" else "")
    # A mark that comes about where the parts meet is none of ours to judge here.
    assume(all(text.count(mark) == (mark == closing) + (opened and mark == thinking.start) for mark in marks))
    thought, answered = divided(thinking, text)
    parsed = detector.detect_and_parse(text)
    assert answered == parsed.normal_text
    if thinking.started or opened:
        assert thought.removeprefix(thinking.start).removesuffix(thinking.end) == parsed.reasoning_text


@pytest.mark.parametrize("version", VERSIONS)
def test_minimax_that_appends_its_mark_thinks_until_the_end_mark(version: str) -> None:
    detector = detector_of(version, "minimax-append-think", True)
    assert detector.detect_and_parse("a</think>b").normal_text == "<think>a</think>b"
    assert divided(_thinking(detector, detector._in_reasoning), "a</think>b") == ("a</think>", "b")
