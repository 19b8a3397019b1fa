"""What stays of a request's tokens: budgets, choices, and the skeleton score against its float64 reference."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geomcli.eviction import reference, scores
from geomcli.eviction.retention import Retention, choose
from geomcli.kernels.derotation import Rope, derotated

ratios = st.floats(0.01, 1.0)
lengths = st.integers(1, 5000)


@given(ratios, lengths)
def test_a_budget_is_the_share_that_was_asked_for_but_never_less_than_the_least(ratio: float, n: int) -> None:
    budget = Retention(ratio).budget(n)
    assert budget == min(n, max(64, budget))
    if n > 64 / ratio:
        assert ratio * n - 1e-6 <= budget < ratio * n + 1
    assert Retention(1.0).budget(n) == n


def test_a_share_is_not_rounded_up_by_the_last_digit_of_a_float() -> None:
    assert Retention(0.3).budget(1000) == 300
    assert Retention(0.07).budget(10_000) == 700


@given(lengths, st.integers(0, 5000))
def test_with_a_ratio_of_one_nothing_ever_leaves(n: int, held: int) -> None:
    assert not Retention(1.0).is_due(min(held, n), n)
    assert Retention(1.0).room(held, n, 77, delay=1, copies=True) == 77


@settings(deadline=None)
@given(st.floats(0.05, 0.95), st.integers(1, 600), st.integers(0, 1500), st.integers(0, 8))
def test_a_request_never_needs_more_room_than_was_set_aside(ratio: float, prompt: int, more: int, delay: int) -> None:
    retention = Retention(ratio)
    room = retention.room(prompt, prompt, more, delay=delay, copies=True)
    held, most, pending, copied = prompt, 0, None, False
    for logical in range(prompt + 1, prompt + more + 1):
        held += 1
        most = max(most, held)
        if pending is None and retention.is_due(held, logical):
            pending = delay
        if pending is not None:
            if pending == 0:
                kept = retention.budget(logical)
                most = max(most, held + (0 if copied else min(kept, prompt)))
                held, pending, copied = kept, None, True
            else:
                pending -= 1
    assert most - prompt <= room or room == more
    assert room <= more


@pytest.mark.parametrize("ratio", [0, -0.1, 1.01, math.nan])
def test_a_ratio_out_of_range_is_named(ratio: float) -> None:
    with pytest.raises(ValueError, match="ratio must be"):
        Retention(ratio)


def test_sinks_and_recent_tokens_must_fit() -> None:
    with pytest.raises(ValueError, match="least must hold"):
        Retention(0.5, sinks=40, recent=40)
    with pytest.raises(ValueError, match="a budget of 30"):
        choose(np.zeros(100), 30)


@given(
    st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=300), st.integers(36, 400), st.integers(0, 4),
    st.integers(0, 32),
)  # fmt: skip
def test_what_is_chosen_fills_the_budget_keeps_its_ends_and_is_the_best(
    values: list[float], budget: int, sinks: int, recent: int
) -> None:
    found = np.array(values)
    n = len(values)
    kept = choose(found, budget, sinks=sinks, recent=recent)
    assert kept.tolist() == choose(found.copy(), budget, sinks=sinks, recent=recent).tolist()
    assert kept.shape[0] == min(budget, n) == len(set(kept.tolist()))
    assert (np.diff(kept) > 0).all()
    assert set(range(min(sinks, n))) <= set(kept.tolist())
    assert set(range(max(0, n - recent), n)) <= set(kept.tolist())
    middle = set(range(sinks, n - recent))
    stayed = [found[i] for i in middle & set(kept.tolist())]
    left = [found[i] for i in middle - set(kept.tolist()) if not math.isnan(found[i])]
    if left:
        assert not any(math.isnan(value) for value in stayed)
        assert not stayed or min(stayed) >= max(left)


def rope(positions: int, dim: int, *, interleaved: bool) -> Rope:
    angles = np.arange(positions)[:, None] * 10_000.0 ** (-np.arange(0, dim, 2) / dim)
    return Rope(torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], axis=1)), interleaved)


def scene(seed: int, *, interleaved: bool = False, n: int = 90, rotated: int = 16) -> scores.Seen:
    """Two key heads of two query heads; tokens have left: positions have gaps."""
    dice = np.random.default_rng(seed)
    positions = np.sort(dice.choice(np.arange(2 * n), n, replace=False))
    last = int(positions[-1])
    return scores.Seen(
        torch.from_numpy(dice.normal(size=(12, 4, 16))),
        torch.arange(last - 11, last + 1),
        torch.from_numpy(dice.normal(size=(n, 2, 16))),
        torch.from_numpy(dice.normal(size=(n, 2, 8))),
        torch.from_numpy(positions),
        rope(1024, rotated, interleaved=interleaved),
        0.3,
    )


def reference_parts(seen: scores.Seen) -> reference.Parts:
    """Head by head, column pairs side by side."""
    dim, half = seen.rope.dim, seen.rope.dim // 2
    order = np.arange(seen.keys.shape[-1])
    if seen.rope.interleaved:
        order[:dim] = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    queries, keys, values = (x.double().numpy() for x in (seen.queries, seen.keys, seen.values))
    still = derotated(seen.queries.double(), seen.query_positions, seen.rope).numpy()
    still_keys = derotated(seen.keys.double(), seen.positions, seen.rope).numpy()
    last = int(seen.query_positions[-1]) + 1
    table = seen.rope.table[np.minimum(last + np.arange(reference.HORIZON), seen.rope.table.shape[0] - 1)].numpy()
    turn = (table[:, :half] + 1j * table[:, half:]).mean(axis=0)
    visible = (seen.positions[None] <= seen.query_positions[:, None]).numpy()
    made = []
    for head in range(4):
        k = keys[:, head // 2]
        made.append((
            reference.received(seen.scale * queries[:, head] @ k.T, visible),
            reference.expected(still[:, head][:, order], k[:, order], values[:, head // 2], turn, seen.scale),
            reference.ranks(reference.distinct(still_keys[:, head // 2])),
        ))  # fmt: skip
    return reference.Parts(*np.mean(np.array(made), axis=0))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("interleaved", "rotated"), [(False, 16), (True, 16), (False, 8)])
def test_the_score_is_that_of_the_float64_reference(seed: int, interleaved: bool, rotated: int) -> None:
    seen = scene(seed, interleaved=interleaved, rotated=rotated)
    expected = reference_parts(seen)
    np.testing.assert_allclose(scores.parts(seen).numpy(), np.array(expected), atol=1e-9)
    # Ranks of heads often add up to the same: the last digits decide, so they are taken as found.
    found = reference.Parts(*scores.parts(seen).numpy())
    np.testing.assert_allclose(scores.skeleton([seen]).numpy(), reference.skeleton(found), atol=1e-6)


def test_in_float32_it_is_nearly_the_same_and_the_same_each_time() -> None:
    seen = scene(7)
    small = scores.Seen(**{k: v.float() if k in ("queries", "keys", "values") else v for k, v in vars(seen).items()})
    found = scores.parts(small)
    assert torch.equal(found, scores.parts(small))
    np.testing.assert_allclose(found[:2].numpy(), np.array(reference_parts(seen))[:2], rtol=1e-4, atol=1e-7)


def test_layers_are_averaged_before_they_are_ranked() -> None:
    one, two = scene(1), scene(2)
    mean = torch.stack([scores.parts(one), scores.parts(two)]).mean(dim=0)
    expected = reference.skeleton(reference.Parts(*mean.numpy()))
    np.testing.assert_allclose(scores.skeleton([one, two]).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("elements", "at_once", "alike"), [(1, True, 1), (1, False, 3), (1 << 24, True, 1)])
def test_heads_and_layers_are_taken_at_once_as_there_is_room(
    monkeypatch: pytest.MonkeyPatch, elements: int, at_once: bool, alike: int
) -> None:
    first = scene(4)
    other = replace(scene(5), query_positions=first.query_positions, positions=first.positions, rope=first.rope)
    layers = [first, other, replace(other, keys=other.keys.flip(0))]
    monkeypatch.setattr(scores, "ELEMENTS", elements)
    parts, taken = scores.parts, list[torch.Tensor]()

    def watched(seen: scores.Seen) -> torch.Tensor:
        taken.append(parts(seen))
        return taken[-1]

    monkeypatch.setattr(scores, "parts", watched)
    found = scores.skeleton(iter(layers), at_once=at_once)
    assert len(taken) == alike
    mean = torch.stack(taken).mean(dim=0)
    each = np.mean([np.array(reference_parts(layer)) for layer in layers], axis=0)
    np.testing.assert_allclose(mean.numpy(), each, atol=1e-9)
    np.testing.assert_allclose(found.numpy(), scores.blend(mean).numpy(), atol=1e-6)
    for different in ({"logit_cap": 5.0}, {"scale": 0.1}, {"rope": rope(1024, 16, interleaved=True)}):
        taken.clear()
        scores.skeleton([first, replace(other, **different)])
        assert len(taken) == 2


def test_logits_are_capped_as_the_model_caps_them() -> None:
    seen = scene(6)
    capped = replace(seen, logit_cap=2.0)
    queries, keys = seen.queries.numpy(), seen.keys.numpy()
    visible = (seen.positions[None] <= seen.query_positions[:, None]).numpy()
    heads = [
        reference.received(2.0 * np.tanh(seen.scale * queries[:, h] @ keys[:, h // 2].T / 2.0), visible)
        for h in range(4)
    ]
    np.testing.assert_allclose(scores.parts(capped)[0].numpy(), np.mean(heads, axis=0), atol=1e-9)


def test_what_is_no_number_ranks_lowest() -> None:
    values = torch.tensor([[1.0, math.nan, 3.0, -2.0]])
    torch.testing.assert_close(scores.ranks(values), torch.tensor([[2 / 3, 0.0, 1.0, 1 / 3]]))


def test_a_token_that_is_looked_at_and_one_that_is_like_no_other_score_high() -> None:
    dice = np.random.default_rng(3)
    seen = scene(3)
    alike = torch.from_numpy(np.repeat(dice.normal(size=(1, 2, 16)) * 0.01, 90, axis=0))
    keys = derotated(alike + 0.001 * seen.keys, seen.positions, Rope(_conjugate(seen.rope.table), False))
    keys[40] = 3 * seen.queries[-1, ::2] / seen.queries[-1, ::2].norm(dim=-1, keepdim=True)
    odd = scores.Seen(**{**vars(seen), "keys": keys})
    parts = scores.parts(odd)
    assert parts[0].argmax() == 40
    assert parts[2].argmax() == 40


def _conjugate(table: torch.Tensor) -> torch.Tensor:
    cos, sin = table.chunk(2, dim=-1)
    return torch.cat([cos, -sin], dim=-1)
