"""Comparison: a trace equals itself, sides can be exchanged, differences are said, odd pairs are refused."""

from __future__ import annotations

import math
import random
import warnings

import msgspec
import numpy as np
import pytest
from hypothesis import given

from geomcli.comparison import Comparison, compare
from geomcli.errors import TraceError
from geomcli.fingerprint import fingerprint_from_histogram, fingerprints_from_histograms
from geomcli.interpretation import fitted, portrait
from geomcli.projection import fit
from geomcli.trace import Trace
from tests.library.made_traces import FLAT, LOCAL, LONG, MID, entry, records, trace, traces

UNTESTED = ", not tested: too few independent steps"


def metric(comparison: Comparison, name: str) -> tuple[float | None, float | None, float | None, float | None]:
    found = next(m for m in comparison.metrics if m.name == name)
    return found.a, found.b, found.delta, found.relative


@given(traces())
def test_a_trace_is_like_itself(x: Trace) -> None:
    c = compare(x, x)
    assert c.similarity.overall == pytest.approx(1, abs=1e-12)
    assert c.similarity.zones in (1, None)
    assert c.divergence is None
    assert c.differences == ()
    assert c.same_tokens == 1
    assert c.histogram.angle == 0
    assert all(m.delta in (0, None) for m in c.metrics)
    assert all(axis.strength == "none" for axis in c.interpretation.axes)


@given(traces(), traces())
def test_sides_can_be_exchanged_and_nothing_leaves_its_range(x: Trace, y: Trace) -> None:
    c, d = compare(x, y), compare(y, x)
    assert c.similarity == d.similarity
    assert 0 <= c.similarity.overall <= 1
    for part in (c.similarity.direction, c.similarity.zones, c.similarity.entropy, c.same_tokens):
        assert part is None or 0 <= part <= 1
    assert [(r.a, r.b) for r in c.alignment] == [(r.b, r.a) for r in d.alignment]
    assert [m.delta for m in c.metrics] == [None if m.delta is None else -m.delta for m in d.metrics]
    assert {z.zone: z.delta for z in c.zones} == {z.zone: -z.delta for z in d.zones}
    assert c.same_tokens == d.same_tokens
    assert len(c.differences) == len(d.differences)
    assert (c.a, c.b) == (d.b, d.a)


@given(traces(), traces())
def test_the_same_again_and_as_json(x: Trace, y: Trace) -> None:
    c = compare(x, y)
    assert compare(x, y) == c
    assert msgspec.json.decode(msgspec.json.encode(c), type=Comparison) == c


def test_shuffled_steps_are_found_different() -> None:
    texts = [f"t{n}" for n in range(60)]
    hists = [LOCAL, MID, LONG] * 20
    shuffled = list(hists)
    random.Random(0).shuffle(shuffled)
    c = compare(trace(texts, hists), trace(texts, shuffled))
    assert c.same_tokens == 1
    assert c.similarity.direction == pytest.approx(1)
    assert c.similarity.zones is not None
    assert c.similarity.zones < 0.6
    assert c.similarity.overall < 0.9


def test_the_formulas() -> None:
    a = trace(["x", "y", "z"], [LOCAL, LOCAL, MID])
    b = trace(["x", "q", "z", "w"], [LOCAL, MID, MID, LONG])
    c = compare(a, b)
    means = [fingerprints_from_histograms(np.array(h)).astype(np.float64).mean(axis=0) for h in
             ([LOCAL, LOCAL, MID], [LOCAL, MID, MID, LONG])]  # fmt: skip
    cosine = means[0] @ means[1] / np.linalg.norm(means[0]) / np.linalg.norm(means[1])
    assert c.similarity.direction == pytest.approx(cosine, abs=1e-5)
    assert c.similarity.entropy == pytest.approx(1 - abs(means[0][3] - means[1][3]), abs=1e-5)
    assert c.similarity.zones == pytest.approx(2 / 3)
    parts = [c.similarity.direction, 2 / 3, c.similarity.entropy]
    assert c.similarity.overall == pytest.approx(sum(parts) / 3)
    assert c.same_tokens == pytest.approx(2 * 2 / 7)
    assert [(r.kind, r.a, r.b) for r in c.alignment] == [
        ("same", 0, 0), ("changed", 1, 1), ("same", 2, 2), ("only_b", None, 3),
    ]  # fmt: skip
    assert c.alignment[1].zones_differ
    assert not c.alignment[3].zones_differ
    assert c.divergence is not None
    assert (c.divergence.a, c.divergence.b, c.divergence.text_a, c.divergence.text_b) == (1, 1, "y", "q")
    assert metric(c, "tokens") == (3, 4, 1, pytest.approx(1 / 3))
    long = metric(c, "long")
    assert long[:3] == (0, pytest.approx(0.25), pytest.approx(0.25))
    assert long[3] is None


def test_differences_in_sentences() -> None:
    far = 0.6 * LONG + 0.4 * LOCAL
    near = 0.3 * LONG + 0.7 * LOCAL
    c = compare(trace(["a", "b"], [far, far]), trace(["a", "c"], [near, near]))
    assert c.differences[0] == 'The texts part at #1 "b" in A, #1 "c" in B.'
    long = "long-range mass (256 tokens back and more)"
    assert f"B keeps 50% less {long}: 0.300 against 0.600{UNTESTED}." in c.differences
    assert f"B keeps 75% more local mass (0 to 7 tokens back): 0.700 against 0.400{UNTESTED}." in c.differences
    assert f"B has 100 points more of its tokens in syntax_floor: 100% against 0%{UNTESTED}." in c.differences
    back = compare(trace(["a", "c"], [near, near]), trace(["a", "b"], [far, far]))
    assert f"B keeps 100% more {long}: 0.600 against 0.300{UNTESTED}." in back.differences
    longer = compare(trace(["a"], [far]), trace(["a", "b"], [far, far]))
    assert longer.differences[:2] == (
        'The texts part at nothing in A, #1 "b" in B.', "B is 1 token longer: 2 against 1.",
    )  # fmt: skip


def test_named_axes_are_heuristic_and_fitted_ones_say_on_what() -> None:
    near, far = trace(["a"], [LOCAL]), trace(["a"], [LONG])
    c = compare(near, far)
    assert (c.interpretation.kind, c.interpretation.n) == ("heuristic", None)
    assert [axis.explained for axis in c.interpretation.axes] == [None] * 3
    first = c.interpretation.axes[0]
    assert first.name == "Local vs Long-Range"
    assert first.value == pytest.approx(-2)
    assert first.sentence == (
        "Strong shift of B towards long-range retrieval (256 tokens back and more) "
        "and away from local syntax (immediate neighbours, 0 to 7 tokens back)"
    )
    shares = np.random.default_rng(0).uniform(0, 1, 50)[:, None]
    f = compare(near, far, projection=fit(fingerprints_from_histograms(shares * LOCAL + (1 - shares) * LONG)))
    assert (f.interpretation.kind, f.interpretation.n) == ("fitted", 50)
    assert f.interpretation.axes[0].strength == "strong"
    assert "long-range" in f.interpretation.axes[0].sentence
    assert f.interpretation.axes[0].explained is not None
    assert compare(near, far, projection=fit(np.zeros((0, 20)))).interpretation.axes == ()


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (LOCAL, 0.9 * LOCAL + 0.1 * MID, "away from local syntax (immediate neighbours, 0 to 7 tokens back)"),
        (0.9 * LOCAL + 0.1 * MID, LOCAL, "towards local syntax (immediate neighbours, 0 to 7 tokens back)"),
        (MID, 0.9 * MID + 0.1 * LONG, "towards long-range retrieval (256 tokens back and more)"),
        (0.9 * MID + 0.1 * LONG, MID, "away from long-range retrieval (256 tokens back and more)"),
        (0.5 * LOCAL + 0.5 * LONG, 0.1 * LOCAL + 0.3 * LONG + 0.6 * MID,
         "away from local syntax (immediate neighbours, 0 to 7 tokens back)"),
    ],
)  # fmt: skip
def test_an_axis_names_the_end_that_moved(a: np.ndarray, b: np.ndarray, said: str) -> None:
    axes = compare(trace(["a"], [a]), trace(["a"], [b])).interpretation.axes
    sentence = next(axis.sentence for axis in axes if axis.name == "Local vs Long-Range")
    assert sentence.endswith(f"shift of B {said}")


def test_a_fitted_axis_names_the_features_that_moved() -> None:
    """Fitted on traces whose local mass gives way to long-range mass; B has other bins, and its bands moved little."""
    shares = np.random.default_rng(0).uniform(0, 1, 50)[:, None]
    axes = fit(fingerprints_from_histograms(shares * LOCAL + (1 - shares) * LONG))
    start, fewer = (fingerprint_from_histogram(0.5 * LONG + h) for h in (0.5 * LOCAL, 0.3 * LOCAL + 0.2 * MID))
    within = start.copy()
    within[[4, 5]] = within[5], 0.9
    (name,) = {axes.name(0), axes.name(1)} & {"local ↔ long-range", "long-range ↔ local"}
    for b, said in (
        (fewer, "less local"),
        (within, "along this axis; what it is named after did not move that way"),
    ):
        sentence = next(axis.sentence for axis in fitted(start, b, axes).axes if axis.name == name)
        assert said in sentence
        assert "more long-range" not in sentence


def test_ripple_has_an_axis_where_both_have_one() -> None:
    wavy, flat = (Trace(records([entry(1, "a", MID, ripple=r)])) for r in (0.8, 0.1))
    axis = next(a for a in compare(flat, wavy).interpretation.axes if a.name == "Structure Ripple")
    assert axis.sentence == "Strong shift of B towards periodic patterns (code, lists)"
    assert len(compare(flat, trace(["a"], [MID])).interpretation.axes) == 3


def test_one_fingerprint_in_words() -> None:
    assert portrait(fingerprint_from_histogram(LOCAL)) == (
        "Strong local syntax processing (immediate neighbours)",
        "Weak semantic context retrieval (paragraph-level)",
        "Weak long-range information retrieval",
    )
    assert portrait(fingerprint_from_histogram(0.5 * LOCAL + 0.3 * MID + 0.2 * LONG)) == (
        "Moderate local syntax processing (immediate neighbours)",
        "Moderate semantic context retrieval (paragraph-level)",
        "Moderate long-range information retrieval",
    )


def test_what_has_to_be_known_is_noted() -> None:
    a = trace(["a", "b"], [LOCAL, None])
    b = Trace(records([entry(1, "a", LOCAL, layer_id=7)], model="other", messages=[{"role": "user", "content": "?"}],
                      end=False))  # fmt: skip
    notes = " ".join(compare(a, b).notes)
    assert "Two models, m and other" in notes
    assert "Two prompts" in notes
    assert "A shows layers 29, B layers 7" in notes
    assert "B was cut off" in notes
    assert "A has a fingerprint for 1 of 2 tokens" in notes
    assert compare(a, a).notes == ("A has a fingerprint for 1 of 2 tokens.", "B has a fingerprint for 1 of 2 tokens.")


def test_tokens_that_had_left_the_cache_are_noted() -> None:
    a, b = trace(["a", "b"], [LOCAL, MID]), trace(["a", "b"], [LOCAL, MID])
    assert "KV cache" not in " ".join(compare(a, b).notes)
    a.steps[0]["kv"] = {"kept": 30, "freed": 0, "share": 1.0}
    b.steps[0]["kv"] = {"kept": 12, "freed": 19, "share": 0.387097, "left": [[4, 23]]}
    b.steps[1]["kv"] = {"kept": "many", "freed": 19}
    said = [note for note in compare(a, b).notes if "KV cache" in note]
    assert said == ["Of 31 tokens of B, 19 had left the KV cache by its last step: they were not looked at any more."]


def test_tokens_without_a_text_are_known_by_their_id_in_one_vocabulary() -> None:
    def hidden(ids: list[int], model: str = "m") -> Trace:
        return Trace(records([entry(n, None, LOCAL, token_id=i) for n, i in enumerate(ids, 1)], model=model))

    assert compare(hidden([5, 6, 7]), hidden([5, 7])).same_tokens == pytest.approx(4 / 5)
    assert compare(hidden([5, 6]), hidden([8, 9], model="other")).divergence is None


def test_traces_that_cannot_be_compared_are_refused_by_name() -> None:
    good = trace(["a"], [LOCAL])
    with pytest.raises(TraceError, match="B has no fingerprint"):
        compare(good, trace(["a"], [None]))
    with pytest.raises(TraceError, match="A has no fingerprint"):
        compare(Trace(records([entry(1, "a", FLAT, flags=["empty"])])), good)
    other = trace(["a"], [LOCAL])
    other.header["ruleset"] = "zones-v1+"
    with pytest.raises(TraceError, match=r"A was classified by zones-v1, B by zones-v1\+"):
        compare(good, other)
    with pytest.raises(TraceError, match="A has entries of schema 2"):
        compare(Trace(records([entry(1, "a", LOCAL, schema=2)])), good)
    future = trace(["a"], [LOCAL])
    future.header["version"] = "2.0"
    with pytest.raises(TraceError, match=r"B has trace format 2\.0"):
        compare(good, future)


def test_captured_at_different_tokens_there_is_no_agreement_to_speak_of() -> None:
    c = compare(trace(["a", "b"], [LOCAL, None]), trace(["a", "b"], [None, LOCAL]))
    assert (c.similarity.zones, c.zone_pairs) == (None, 0)
    assert c.similarity.overall == pytest.approx(1)


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324])
def test_numbers_that_nothing_measures_are_no_metrics(value: float) -> None:
    fields = dict.fromkeys(("drift", "ripple", "sink_mass", "entropy_bits", "zone_confidence"), value)
    odd, plain = (
        Trace(records([entry(n, "a", LOCAL, **{**dict.fromkeys(fields, 0.5), **more}) for n in range(1, 31)]))
        for more in (fields, {})
    )
    odd.metrics["tokensPerSecond"] = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = [compare(odd, plain), compare(plain, odd)]
    for c in made:
        assert "nan" not in " ".join(c.differences)
        for m in c.metrics:
            assert all(number is None or math.isfinite(number) for number in (m.a, m.b, m.delta, m.relative))
    if abs(value) > 1:
        assert metric(made[0], "sink_mass") == (None, 0.5, None, None)
        assert metric(made[0], "tokens_per_second")[0] is None


@pytest.mark.parametrize(
    "links", [{"layers": 5}, {"layers": ["a"]}, {"layer_sketches": [1]}, {"layers": {"²": {}, "x": 1}}, {}]
)
def test_layers_that_cannot_be_read_are_none(links: dict[str, object]) -> None:
    odd = trace(["a"], [LOCAL])
    odd.steps[0]["attention"] = links
    odd.steps[0]["layer_id"] = None
    assert compare(odd, odd).a.layers == ()
    odd.steps[0]["schema"] = [1]
    with pytest.raises(TraceError, match=r"A has entries of schema \[1\]"):
        compare(odd, odd)
