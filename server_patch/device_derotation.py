"""Scheduler process, backends that run kernels: content and position scores of a step's links.

Launched behind the step for the rows that ask, so that neither a CUDA graph nor another request's step has a launch
more. On several ranks every one of them takes part for the same rows, whatever failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from geomcli.kernels import derotated_links, layout, ranks
from geomcli.kernels.buffers import Buffers
from geomcli.kernels.derotation import Rope
from geomcli.server_patch import faults
from geomcli.server_patch.ropes import rope_of


class Derotation:
    """`embeddings`: the rotary embedding module of each captured layer; `slots`: the engine's req_to_token."""

    def __init__(self, buffers: Buffers, slots: torch.Tensor, embeddings: Sequence[Any], group: Any = None) -> None:
        self._buffers, self._slots, self._group = buffers, slots, group
        distinct = list({id(embedding): embedding for embedding in embeddings}.values())
        self._embeddings = [
            (one, torch.tensor([n for n, other in enumerate(embeddings) if other is one], device=slots.device))
            for one in distinct
        ]

    def compile(self, pool: torch.Tensor) -> None:
        """Compile the kernels for the record of a slot that never asks; pool [1] holds it."""
        derotated_links.launch(
            self._buffers, self._buffers.records, ropes=self._ropes(), chosen=pool, pool=pool, slots=self._slots
        )

    def _ropes(self) -> list[tuple[Rope, torch.Tensor]]:
        return [(rope_of(embedding), places) for embedding, places in self._embeddings]

    def scores(self, records: torch.Tensor, rows: Sequence[int], pool: torch.Tensor) -> torch.Tensor:
        """Content and position [layers, n, 2, KEEP] of the links in records [layers, n, words], NaN in other rows.

        pool [n] holds the slots of the batch's requests.
        """
        chosen = torch.tensor(rows, dtype=torch.int64, pin_memory=pool.is_cuda).to(pool.device, non_blocking=True)
        try:
            found = derotated_links.launch(
                self._buffers, records, ropes=self._ropes(), chosen=chosen, pool=pool, slots=self._slots
            )
        except Exception:
            faults.report("the links of a step could not be de-rotated")
            size = (len(self._buffers.layers), len(rows), layout.DEROTATED_WORDS, layout.KEEP)
            found = torch.full(size, float("nan"), device=pool.device)
        if self._group is not None:
            found = ranks.merge_derotated(found, self._group)
        made = torch.full((*records.shape[:2], layout.D_WEIGHT, layout.KEEP), float("nan"), device=pool.device)
        return made.index_copy_(1, chosen, found[:, :, : layout.D_WEIGHT])
