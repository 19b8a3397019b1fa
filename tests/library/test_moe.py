"""Routing of captured rows: whose weights, in which order, and what is said when they cannot be had."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from geomcli.server_patch import moe
from geomcli.server_patch.request_options import ModelShape, resolve
from geomcli.server_patch.server_options import ServerOptions
from geomcli.server_patch.worker import Builder
from tests.library.test_device_step import PROMPT, builder, entries_of, options, records  # noqa: F401
from tests.library.test_graph_safety import NoAllocation

WIDTH = 2


class Chosen(NamedTuple):
    topk_weights: torch.Tensor
    topk_ids: torch.Tensor


class TopK(torch.nn.Module):
    """Found by its class's name, as SGLang's is; the last column belongs to a shared expert."""

    def __init__(self, layer_id: int) -> None:
        super().__init__()
        self.layer_id = layer_id

    def forward(self, tokens: int, start: float) -> Any:
        weights = torch.arange(tokens * 3, dtype=torch.float32).view(tokens, 3) + start
        return Chosen(weights, weights.int())


def capturer(tokens: int = 8, layers: int = 4) -> Any:
    buffer = torch.arange(tokens * layers * (WIDTH + 1), dtype=torch.int32).view(tokens, layers, WIDTH + 1)
    return SimpleNamespace(device_cache=SimpleNamespace(buffer=buffer), topk_size=WIDTH)


def batch(*lengths: int) -> Any:
    mode = SimpleNamespace(is_extend=lambda: bool(lengths))
    return SimpleNamespace(forward_mode=mode, extend_seq_lens=torch.tensor(lengths) if lengths else None)


def test_rows_have_their_own_experts_and_weights() -> None:
    source = capturer()
    routers = {3: TopK(3), 1: TopK(1)}
    routing = moe.Routing(routers, source)
    assert routing.layers == (1, 3)
    routers[1](5, 100.0)
    routers[3](5, 200.0)
    for found, tokens in ((routing.rows(batch(), 2), [0, 1]), (routing.rows(batch(2, 3), 2), [1, 4])):
        assert found is not None
        for row, token in enumerate(tokens):
            for place, layer in enumerate(routing.layers):
                assert found[row, place, 0].tolist() == source.device_cache.buffer[token, layer, :WIDTH].tolist()
                weights = found[row, place, 1].view(torch.float32)
                assert weights.tolist() == [100.0 * (place + 1) + 3 * token + n for n in range(WIDTH)]


def test_a_recorded_router_allocates_nothing() -> None:
    router = TopK(0)
    moe.Routing({0: router}, capturer())
    output = router.forward(3, 0.0)
    hook = next(iter(router._forward_hooks.values()))
    with NoAllocation():
        hook(router, (), output)


def test_a_router_that_keeps_its_weights_to_itself_gives_none() -> None:
    router = TopK(0)
    routing = moe.Routing({0: router}, capturer())
    next(iter(router._forward_hooks.values()))(router, (), SimpleNamespace(router_logits=None))
    assert routing.rows(batch(), 1) is None


def test_an_entry_names_the_heaviest_expert_first_and_others_of_the_batch_none(
    builder: Builder,  # noqa: F811
) -> None:
    weights = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]] * 2)
    experts = torch.tensor([[[5, 2], [1, 0]]] * 2, dtype=torch.int32)
    packed = torch.stack([experts, weights.view(torch.int32)], dim=2)
    asking = [options(moe_layers=(4, 6)), options()]
    with_routing, without = entries_of(builder, asking, records(2), routing=packed)
    assert with_routing["moe"] == {
        "4": {"experts": [2, 5], "weights": [0.75, 0.25]},
        "6": {"experts": [1, 0], "weights": [0.5, 0.5]},
    }
    assert with_routing["bytes"] == without["bytes"] + 2 * 2 * 8
    assert "moe" not in without


def test_an_entry_without_its_routing_says_null(builder: Builder) -> None:  # noqa: F811
    (lost,) = entries_of(builder, [options(moe_layers=(4, 6))], records(1))
    assert (lost["moe"], lost["flags"]) == (None, [])
    assert lost["prompt_len"] == PROMPT


def test_of_which_models_there_is_routing(monkeypatch: pytest.MonkeyPatch) -> None:
    source: Any = None
    fake = SimpleNamespace(get_global_experts_capturer=lambda: source)
    monkeypatch.setitem(__import__("sys").modules, "sglang.srt.state_capturer.routed_experts", fake)
    dense = SimpleNamespace(model=torch.nn.Linear(2, 2))
    assert moe.of_model(dense, SimpleNamespace()) == (None, "this model has no experts")
    sparse = SimpleNamespace(model=torch.nn.ModuleList([TopK(0)]))
    assert moe.of_model(sparse, SimpleNamespace())[1] == f"this server was started without {moe.FLAG}"
    source = capturer()
    assert "--moe-a2a-backend deepep" in moe.of_model(sparse, SimpleNamespace(moe_a2a_backend="deepep"))[1]
    routing, missing = moe.of_model(sparse, SimpleNamespace(moe_a2a_backend="none"))
    assert (routing is not None, missing) == (True, "")


def test_a_request_gets_routing_or_a_reason() -> None:
    server, body = ServerOptions(enabled=True), {"return_attention_tokens": True, "return_moe_routing": True}
    options = resolve(body, server, ModelShape(4, (3,), 8, moe_layers=(1, 2)))
    assert options is not None
    assert options.moe_layers == (1, 2)
    with pytest.raises(ValueError, match="return_moe_routing: this model has no experts"):
        resolve(body, server, ModelShape(4, (3,), 8, moe_missing="this model has no experts"))
    with pytest.raises(ValueError, match="ask for return_attention_tokens too"):
        resolve({"return_moe_routing": True}, server, ModelShape(4, (3,), 8, moe_layers=(1, 2)))
