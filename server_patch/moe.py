"""Scheduler process: which experts the query token of each captured row went to, and with which weights.

SGLang stores the experts of a step's tokens itself (--enable-return-routed-experts), one row a token, but not their
weights. Those are stored here beside them, in the same rows and columns, as each layer's router gives them out.
"""

from __future__ import annotations

from typing import Any

import torch

from geomcli.server_patch import faults

FLAG = "--enable-return-routed-experts"


class Routing:
    """Weights of a step's tokens, and where SGLang keeps their experts."""

    def __init__(self, routers: dict[int, Any], capturer: Any) -> None:
        self.layers = tuple(sorted(routers))
        self._experts = capturer.device_cache.buffer  # int32 [tokens, layers of the model, experts and shared ones]
        self._width = int(capturer.topk_size)
        tokens, device = self._experts.shape[0], self._experts.device
        self._weights = torch.zeros(tokens, len(self.layers), self._width, device=device)
        self._places = torch.tensor(self.layers, device=device)
        self._complete = True
        for place, layer in enumerate(self.layers):
            routers[layer].register_forward_hook(self._keeper(place))

    @property
    def words(self) -> int:
        """4-byte words that a row takes."""
        return len(self.layers) * 2 * self._width

    def _keeper(self, place: int) -> Any:
        def keep(_router: Any, _inputs: Any, output: Any) -> None:
            # In graphs of either kind it runs when they are recorded: no allocation, no branch on a value.
            weights = getattr(output, "topk_weights", None)
            if weights is None:
                self._complete = False
            else:
                self._weights[: weights.shape[0], place].copy_(weights[:, : self._width])

        return keep

    def rows(self, forward_batch: Any, n: int) -> torch.Tensor | None:
        """After sampling, on the forward stream: int32 [n, layers, 2, width], experts and the bits of their weights.

        Of a prefill the last token of each request. None where a router has kept its weights to itself.
        """
        if not self._complete:
            return None
        if forward_batch.forward_mode.is_extend():
            at = forward_batch.extend_seq_lens.cumsum(0)[:n] - 1
            experts, weights = self._experts[at], self._weights[at]
        else:
            experts, weights = self._experts[:n], self._weights[:n]
        experts = experts[:, self._places, : self._width]
        return torch.stack([experts, weights.view(torch.int32)], dim=2)


def of_model(runner: Any, server_args: Any) -> tuple[Routing | None, str]:
    """The routing of this model, or half a sentence why requests cannot have it."""
    routers = {m.layer_id: m for m in runner.model.modules() if type(m).__name__ == "TopK" and m.layer_id is not None}
    if not routers:
        return None, "this model has no experts"
    from sglang.srt.state_capturer.routed_experts import get_global_experts_capturer

    capturer = get_global_experts_capturer()
    if capturer is None:
        return None, f"this server was started without {FLAG}"
    if (backend := str(getattr(server_args, "moe_a2a_backend", "none"))) not in ("none", "None"):
        return None, f"this server's tokens are spread over ranks (--moe-a2a-backend {backend})"
    return Routing(routers, capturer), ""


def collect(routing: Routing | None, step: Any, forward_batch: Any, n: int) -> None:
    """Leave the routing of n rows in the step if one of its requests asks; None there where it cannot be had."""
    if routing is None or not step.wants_routing:
        return
    try:
        step.routing = routing.rows(forward_batch, n)
    except Exception:
        faults.report("the routing of a step could not be read; its entries say null")
