"""Which rotary embeddings are undone, and what is said of the others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from geomcli.server_patch import capture, ropes
from geomcli.server_patch.ropes import NotUndone, embeddings_of
from geomcli.server_patch.scheduler_state import SchedulerState


class RadixAttention(torch.nn.Module):
    """Found by its class's name, as SGLang's is."""

    def __init__(self, layer_id: int) -> None:
        super().__init__()
        self.layer_id, self.is_cross_attention, self.qk_head_dim = layer_id, False, 64


def attention(kind: str, layer: int, embedding: Any) -> torch.nn.Module:
    made = type(kind, (torch.nn.Module,), {})()
    made.attn, made.rotary_emb = RadixAttention(layer), embedding
    return made  # type: ignore[no-any-return]


def embedding(kind: str = "RotaryEmbedding", **changes: Any) -> Any:
    values = {"head_size": 64, "is_neox_style": True, "cos_sin_cache": torch.zeros(8, 32), **changes}
    made = type(kind, (torch.nn.Module,), {})()
    vars(made).update(values)
    return made


def model(*modules: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.ModuleList(modules)


def test_each_layer_has_the_embedding_of_its_attention() -> None:
    one, other = embedding(), embedding("Llama3RotaryEmbedding", is_neox_style=False)
    found = embeddings_of(model(attention("LlamaAttention", 4, other), attention("Qwen2Attention", 1, one)), (1, 4))
    assert found[0] is one
    assert found[1] is other
    assert ropes.rope_of(other).interleaved
    assert ropes.rope_of(one).dim == 32


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (attention("Exaone4Attention", 1, embedding()), "Exaone4Attention is no attention"),
        (attention("LlamaAttention", 1, None), "layer 1 has no rotary embedding"),
        (attention("LlamaAttention", 1, embedding("MRotaryEmbedding")), "rotation of MRotaryEmbedding cannot"),
        (attention("LlamaAttention", 1, embedding("LinearScalingRotaryEmbedding", scaling_factors=[1.0, 2.0])),
         "rotation of LinearScaling"),
        (attention("LlamaAttention", 1, embedding(head_size=32)), "another width"),
        (attention("LlamaAttention", 2, embedding()), "the attention of layer 1"),
    ],
    ids=["attention", "none", "mrope", "several-factors", "width", "layer"],
)  # fmt: skip
def test_what_cannot_be_undone_is_said_in_half_a_sentence(made: torch.nn.Module, sentence: str) -> None:
    with pytest.raises(NotUndone, match=sentence):
        embeddings_of(model(made), (1,))


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> SchedulerState:
    made = SchedulerState()
    made.layers, made.source = (1,), "probe"
    monkeypatch.setattr(capture, "scheduler", made)
    return made


def test_a_server_that_insists_stops_where_the_view_cannot_be_had(scheduler: SchedulerState) -> None:
    wrong = model(attention("LlamaAttention", 1, None))
    with pytest.raises(ValueError, match="no rotary embedding; leave --attention-derotate out"):
        capture._prepare_derotation(wrong, insisted=True)
    capture._prepare_derotation(wrong, insisted=False)
    assert "no rotary embedding" in scheduler.not_derotated
    assert scheduler.embeddings == {}


@pytest.mark.parametrize(
    ("source", "insisted", "offered"),
    [("probe", False, True), ("recompute", False, True), ("tap", False, False), ("tap", True, True)],
)
def test_a_tap_keeps_queries_only_where_the_server_insists(
    scheduler: SchedulerState, source: str, insisted: bool, offered: bool
) -> None:
    kept: list[Any] = []
    scheduler.source, scheduler.device = source, SimpleNamespace(derotate=kept.append)
    capture._prepare_derotation(model(attention("LlamaAttention", 1, embedding())), insisted=insisted)
    assert (not scheduler.not_derotated) is bool(scheduler.embeddings) is bool(kept) is offered
    assert offered or "--attention-derotate" in scheduler.not_derotated
