"""Sentences, sources and what spans read: laws on any input, and the cases that prompts are made of."""

from __future__ import annotations

import math
import re
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomcli import jsonl, report
from geomcli.display import printable
from geomcli.errors import TraceError, UsageError
from geomcli.layers import layer_views
from geomcli.links import layers_of
from geomcli.sentences import sentences
from geomcli.sources import LONGEST_PROMPT, documents, owners, paragraphs, parse_given, sources_of
from geomcli.spans import SentenceReader, lookback, parse_span, read_spans, sentence_spans
from geomcli.trace import Trace
from tests.library.made_traces import LOCAL, entry, records

PROMPT = ["<s>", "system", "\n", "Be", " brief", ".", "</s>", "user", "\n", "Why", "?", "</s>", "assistant", "\n"]
MESSAGES: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]


def linked(links: dict[int, float], **more: Any) -> dict[str, Any]:
    """The fields of a raw entry with these probabilities by position."""
    logits = [math.log(p) for p in links.values()]
    return {"mode": "raw", "token_positions": list(links), "topk_logits": logits, "logsumexp_candidates": 0.0, **more}


def made(
    tokens: list[tuple[str, dict[int, float]]], prompt: list[str | None] = PROMPT, messages: Any = MESSAGES, **more: Any
) -> Trace:
    """A trace whose answer has these tokens and links."""
    entries = [
        entry(n, text, LOCAL, prompt_len=len(prompt), query_position=len(prompt) + n - 2, **linked(links), **more)
        for n, (text, links) in enumerate(tokens, 1)
    ]
    entries[0]["prompt_tokens"] = prompt
    return Trace(records(entries, messages=messages))


# --- sentences


@given(
    st.lists(st.sampled_from(["A", " b", ".", "!", "\n", "", " e.g", ".", "?", " ", "1", "。", '."', "…"]), max_size=30)
)
def test_sentences_are_a_partition(texts: list[str]) -> None:
    runs = sentences(texts)
    assert [i for first, end in runs for i in range(first, end)] == list(range(len(texts)))
    assert all(first < end for first, end in runs)


def test_a_sentence_may_begin_with_a_token_without_text() -> None:
    assert sentences(["Think.", "", " Then", "."], breaks=[1]) == [(0, 1), (1, 4)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", " Two!", " Three?", " Four"]),
        ("See Dr. J. Smith, e.g. here. Then 3.5 m.", ["See Dr. J. Smith, e.g. here.", " Then 3.5 m."]),
        ("1. First.\n2. Second.\n", ["1. First.\n", "2. Second.\n"]),
        ('He said "no." Then left.', ['He said "no."', " Then left."]),
        ("一。二。", ["一。", "二。"]),
        ("Title\n\nText", ["Title\n\n", "Text"]),
        ("", []),
    ],
)
def test_sentences_of_texts(text: str, expected: list[str]) -> None:
    pieces = re.findall(r" ?\w+|\s+|[^\w\s]", text)
    assert ["".join(pieces[a:b]) for a, b in sentences(pieces)] == expected


def test_the_end_of_thinking_ends_a_sentence() -> None:
    entries = [
        entry(n, text, LOCAL, think_phase=phase)
        for n, (text, phase) in enumerate([("so", "think"), (" it", "think"), ("Yes", "output"), (".", "output")], 1)
    ]
    assert sentence_spans(Trace(records(entries))) == [(0, 2), (2, 4)]


# --- sources


def test_messages_template_sinks_and_answer() -> None:
    trace = made([("Because", {9: 0.5}), (".", {14: 0.5})])
    found = {source.name: source.ranges for source in sources_of(trace, sinks=1)}
    assert found == {
        "sinks": ((0, 1),), "template": ((1, 3), (6, 9), (11, 14)), "system": ((3, 6),), "user": ((9, 11),),
        "answer": ((14, 16),),
    }  # fmt: skip


def test_every_position_is_in_one_source() -> None:
    for division in ("documents", "paragraphs", "messages"):
        sources = sources_of(made([("a", {0: 0.5}), ("b", {0: 0.5})]), division=division)
        assert sorted(p for s in sources for a, b in s.ranges for p in range(a, b)) == list(range(16))
        found = owners(sources)
        assert found.end == 16
        assert [sources[o].name for o in found.of(np.arange(16)).tolist()][-1] == "answer"
        assert found.of(np.array([-1, 16, 2**62])).tolist() == [-1, -1, -1]


def test_a_message_that_is_the_name_of_its_role() -> None:
    prompt: list[str | None] = ["<s>", "user", "\n", "user", "</s>"]
    trace = made([("Hi", {3: 1.0})], prompt, [{"role": "user", "content": "user"}])
    assert {s.name: s.ranges for s in sources_of(trace, sinks=0)}["user"] == ((3, 4),)


def test_a_trace_without_the_prompts_tokens_has_one_prompt() -> None:
    trace = Trace(records([entry(1, "Hi", LOCAL, **linked({3: 0.5}))]))
    assert [(s.name, s.ranges) for s in sources_of(trace)] == [
        ("sinks", ((0, 4),)), ("prompt", ((4, 10),)), ("answer", ((10, 11),)),
    ]  # fmt: skip
    assert sources_of(Trace()) == []


def test_masked_positions_are_a_source_of_their_own() -> None:
    prompt: list[str | None] = [None] * 6 + PROMPT[6:]  # type: ignore[operator]
    found = {s.name: s.ranges for s in sources_of(made([("a", {9: 0.5})], prompt))}
    assert found["masked"] == ((0, 6),)
    assert "system" not in found
    assert found["user"] == ((9, 11),)


def test_given_sources() -> None:
    trace = made([("a", {9: 0.5})])
    given_sources = [parse_given("notes=3:5"), parse_given("a=b=9:10")]
    found = {s.name: s.ranges for s in sources_of(trace, given=given_sources)}
    assert found["notes"] == ((4, 5),), "sinks stay apart"
    assert found["a=b"] == ((9, 10),)
    assert found["user"] == ((10, 11),)
    assert {s.name: s.ranges for s in sources_of(trace, given=given_sources, sinks=0)}["notes"] == ((3, 5),)
    for wrong in ("notes", "notes=5", "=1:2"):
        with pytest.raises(UsageError):
            parse_given(wrong)
    with pytest.raises(UsageError, match="overlap at position 4"):
        sources_of(trace, given=[("a", 3, 5), ("b", 4, 6)])
    with pytest.raises(UsageError, match="within 0:15"):
        sources_of(trace, given=[("a", 3, 50)])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Document 1: a\nb\n\nc\nDocument 2: d\n\nWhich?", {"Document 1": "Document 1: a\nb\n\nc\n",
                                                            "Document 2": "Document 2: d"}),
        ("[1] a\n[2] b\n\nWhich?", {"document 1": "[1] a\n", "document 2": "[2] b"}),
        ("### Source B\n\ntext\n\nWhich?", {"Source B": "### Source B\n\ntext"}),
        ('<document title="Moon">x\n\ny</document> Which?', {"Moon": '<document title="Moon">x\n\ny</document>'}),
        ("<doc>a</doc><doc>b</doc>", {"doc 1": "<doc>a</doc>", "doc 2": "<doc>b</doc>"}),
        ("The document says no. Documents are long.", {}),
    ],
)  # fmt: skip
def test_documents(text: str, expected: dict[str, str]) -> None:
    assert {name: text[a:b] for name, a, b in documents(text)} == expected


def test_paragraphs() -> None:
    text = "a\nb\n\n \nc\n\n"
    assert [(name, text[a:b]) for name, a, b in paragraphs(text)] == [("paragraph 1", "a\nb"), ("paragraph 2", " \nc")]
    assert paragraphs("only one") == []


def test_documents_inside_a_prompt() -> None:
    content = "[1] cats purr\n[2] dogs bark\n\nWho barks?"
    prompt: list[str | None] = ["<s>", *content, "</s>"]
    trace = made([("Dogs", {18: 0.6, 3: 0.1}), (".", {18: 0.2})], prompt, [{"role": "user", "content": content}])
    sources = sources_of(trace, sinks=1)
    assert [s.name for s in sources] == ["sinks", "document 1", "document 2", "user", "template", "answer"]
    (reading,) = read_spans(trace, [(0, 2)], sources)
    masses = {m.source: round(m.mass, 6) for m in reading.masses}
    assert masses == {
        "sinks": 0, "document 1": 0.05, "document 2": 0.4, "user": 0, "template": 0, "answer": 0,
    }  # fmt: skip


# --- masses


@st.composite
def read_traces(draw: Any) -> Trace:
    tokens = []
    for n in range(draw(st.integers(1, 8))):
        positions = draw(st.lists(st.integers(0, len(PROMPT) + n), unique=True, min_size=0, max_size=6))
        weights = draw(st.lists(st.integers(1, 9), min_size=len(positions), max_size=len(positions)))
        total = sum(weights) + draw(st.integers(0, 5))
        tokens.append(("ab. "[n % 4], {p: w / total for p, w in zip(positions, weights, strict=True)}))
    return made(tokens)


@given(read_traces(), st.integers(0, 4), st.integers(4, 8), st.integers(9, 13))
def test_laws_of_masses(trace: Trace, sinks: int, start: int, end: int) -> None:
    spans = [*sentence_spans(trace), (0, len(trace.tokens))]
    plain = read_spans(trace, spans, sources_of(trace, sinks=sinks))
    split = read_spans(trace, spans, sources_of(trace, sinks=sinks, given=[("mine", start, end)]))
    for reading, other in zip(plain, split, strict=True):
        total = sum(m.mass for m in reading.masses)
        assert total <= 1 + 1e-9
        assert math.isclose(total, reading.covered, abs_tol=1e-9)
        assert math.isclose(reading.covered + reading.unseen, 1)
        assert all(0 <= m.mass <= m.most <= 1 for m in reading.masses)
        shares = [m.share for m in reading.masses if m.share is not None]
        assert not shares or math.isclose(sum(shares), 1)
        # Cutting a source in pieces moves mass, and makes none.
        assert math.isclose(sum(m.mass for m in other.masses), total, abs_tol=1e-9)
        assert other.read == reading.read


@given(read_traces())
def test_a_span_is_the_weighted_mean_of_its_parts(trace: Trace) -> None:
    sources = sources_of(trace)
    whole = read_spans(trace, [(0, len(trace.tokens))], sources)[0]
    parts = read_spans(trace, [(n, n + 1) for n in range(len(trace.tokens))], sources)
    assert whole.read == sum(part.read for part in parts)
    for number, mass in enumerate(whole.masses):
        mean = sum(part.masses[number].mass for part in parts if part.masses) / whole.read
        assert math.isclose(mass.mass, mean, abs_tol=1e-9)


def test_a_true_mass_lies_between_the_bounds() -> None:
    full = {0: 0.2, 4: 0.3, 9: 0.25, 14: 0.15, 10: 0.1}
    top = dict(sorted(full.items(), key=lambda item: -item[1])[:3])
    whole, cut = (made([("a", {14: 1.0}), ("b", links)]) for links in (full, top))
    truth, shown = (read_spans(t, [(1, 2)], sources_of(t))[0] for t in (whole, cut))
    assert cut is not whole
    for true, seen in zip(truth.masses, shown.masses, strict=True):
        assert seen.mass <= true.mass + 1e-9
        assert true.mass <= seen.most + 1e-9


def test_layers_tokens_without_links_and_lookback() -> None:
    row = {key: value for key, value in linked({9: 0.25}).items() if key != "mode"}
    trace = made(
        [("a", {9: 0.5}), ("b", {9: 0.5})],
        layers={"10": row},
        head_stats={"29": {"entropy": [1.0, 2.0], "lookback": [0.2, 0.6]}},
    )
    sources = sources_of(trace)
    assert [round(read_spans(trace, [(0, 2)], sources, layer=layer)[0].covered, 6) for layer in (None, 10)] == [
        0.5,
        0.25,
    ]
    assert read_spans(trace, [(0, 2)], sources)[0].lookback == pytest.approx(0.4)
    assert read_spans(trace, [(0, 1)], sources)[0].lookback is None, "nothing was generated before the first token"
    assert read_spans(trace, [(0, 2)], sources, layer=10)[0].lookback is None
    nothing = read_spans(Trace(records([entry(1, "a", LOCAL)])), [(0, 1)], sources)[0]
    assert (nothing.read, nothing.masses, nothing.unseen) == (0, (), 1.0)
    for odd in ({}, {"attention": {"head_stats": {"29": {"entropy": [1.0], "lookback": ["x"]}}}, "layer_id": 29}):
        assert lookback(odd) is None


def test_parse_span() -> None:
    assert [parse_span(text, 9) for text in ("2:5", ":5", "2:", ":")] == [(2, 5), (0, 5), (2, 9), (0, 9)]
    for wrong in ("", "5", "5:2", "5:5", "0:10", "a:b"):
        with pytest.raises(UsageError, match="is no span"):
            parse_span(wrong, 9)


def test_a_real_trace() -> None:
    from geomcli.tui.app import DEMO_FILE

    for made_records in jsonl.read_file(DEMO_FILE).traces:
        trace = Trace(made_records)
        readings = read_spans(trace, sentence_spans(trace), sources_of(trace))
        assert "".join(r.text for r in readings) == "".join(t["text"] for t in trace.tokens)
        for reading in readings:
            masses = [s["attention"]["topk_mass"] for s in trace.steps[reading.start : reading.end]]
            assert reading.covered == pytest.approx(sum(masses) / len(masses), abs=1e-4), printable(reading.text)


# --- a trace that grows


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", " b", ".", "!", "\n", "", " e.g", " ", "。", '."']),
            st.dictionaries(st.integers(0, 40), st.floats(0.01, 0.2), max_size=4),
            st.booleans(),
        ),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 7),
)
def test_a_sentence_read_as_the_trace_grows_is_read_as_of_the_whole(
    tokens: list[tuple[str, dict[int, float], bool]], every: int
) -> None:
    # Tokens look at what is before them.
    before = [{p: mass for p, mass in links.items() if p < len(PROMPT) + n} for n, (_, links, _) in enumerate(tokens)]
    whole = made([(text, links or {0: 0.5}) for (text, _, _), links in zip(tokens, before, strict=True)])
    thought = 0
    while thought < len(tokens) and tokens[thought][2]:
        whole.tokens[thought]["segmentId"] = "assistant-1-think"
        thought += 1
    growing = Trace()
    reader = SentenceReader(growing)
    for number, record in enumerate(whole.records()):
        growing.add(record)
        if growing.tokens and number % every == 0:
            last = len(growing.tokens) - 1
            first, end = reader.sentence(last)
            assert first <= last < end == len(growing.tokens)
            reader.read((first, end))
    spans = sentence_spans(whole)
    assert sorted({reader.sentence(i) for i in range(len(whole.tokens))}) == spans
    for mine, one in zip(
        (reader.read(span) for span in spans), read_spans(whole, spans, sources_of(whole)), strict=True
    ):
        by_name = {mass.source: mass for mass in mine.masses}
        assert {mass.source: mass for mass in one.masses} == by_name
        assert (mine.start, mine.end, mine.text, mine.phase, mine.read) == (
            one.start, one.end, one.text, one.phase, one.read,
        )  # fmt: skip
        assert mine.covered == pytest.approx(one.covered)


def test_a_reader_of_a_trace_without_steps_knows_nothing() -> None:
    trace = Trace(records([], messages=MESSAGES))
    trace.add({"record_type": "token", "index": 0, "text": "A", "segmentId": "assistant-1"})
    reader = SentenceReader(trace)
    assert reader.sentence(0) == (0, 1)
    reading = reader.read((0, 1))
    assert (reading.read, reading.masses, reading.unseen) == (0, (), 1.0)


# --- traces of anyone


def of_prompt(length: int, *, query: int | None = None, **more: Any) -> Trace:
    asked = {} if query is None else {"query_position": query}
    entries = [entry(1, "Hi", LOCAL, prompt_len=length, **{**linked({3: 0.5}), **asked, **more})]
    return Trace(records(entries))


@pytest.mark.parametrize("length", [-5, 10**9, 2**62])
def test_a_prompt_that_cannot_be_is_refused_by_name(length: int) -> None:
    with pytest.raises(TraceError, match=rf"`prompt_len` of the step of token 0 is {length}:") as refused:
        sources_of(of_prompt(length, query=2**62))
    assert refused.value.mend == f"prompt_len from 0 to {LONGEST_PROMPT}"
    reader = SentenceReader(of_prompt(length))
    assert reader.read((0, 1)).covered == 0
    assert reader.sources == []


def test_a_prompt_that_ends_behind_who_read_it_is_refused() -> None:
    with pytest.raises(TraceError, match="is 12, its `query_position` 10"):
        sources_of(of_prompt(12, query=10))
    assert sources_of(of_prompt(11, query=10))


def test_a_long_prompt_takes_no_memory() -> None:
    trace = of_prompt(LONGEST_PROMPT, query=LONGEST_PROMPT)
    tracemalloc.start()
    sources = sources_of(trace, given=[("far", LONGEST_PROMPT - 5, LONGEST_PROMPT)])
    (reading,) = read_spans(trace, [(0, 1)], sources)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000
    assert [(s.name, s.tokens) for s in sources] == [
        ("sinks", 4), ("prompt", LONGEST_PROMPT - 9), ("far", 5), ("answer", 1),
    ]  # fmt: skip
    assert reading.covered == pytest.approx(0.5)


@pytest.mark.parametrize(
    "attention",
    [
        {"layers": 5},
        {"layers": ["a"]},
        {"layer_sketches": [1]},
        {"layers": {"²": {}, "٣": {}, "9" * 5000: {}, "x": None}},
        {"head_stats": 5},
        {"token_positions": [2**64], "topk_logits": [0.0], "logsumexp_candidates": 0.0},
        {"layer_sketches": {"29": {"top_hubs": [[1, 1e308], [2, 1e308], [3, -3.0]]}}},
        {"head_stats": {"29": {"entropy": [1.0], "lookback": [1e308, 1e308]}}},
    ],
)
def test_links_that_cannot_be_read_are_none(attention: dict[str, Any]) -> None:
    trace = of_prompt(10)
    trace.steps[0]["attention"] = attention
    assert layers_of(trace.steps[0]) == [29]
    assert [view.layer for view in layer_views(trace.steps[0])] in ([29], [])
    reading = read_spans(trace, [(0, 1)], sources_of(trace))[0]
    assert (reading.covered, reading.lookback) == (0, None)
    assert lookback(trace.steps[0]) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "<html" in report.render(trace)


def test_experts_that_cannot_be_read_are_none() -> None:
    trace = of_prompt(10, moe={"²": {"experts": [1], "weights": [1.0]}, "3": {"experts": [-1], "weights": [1e308]},
                               "4": {"experts": [2], "weights": [1e308]}})  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = report.render(trace)
    assert '"experts":[3,4]' in page
