"""Scheduler process: how sure the model itself was of each token, before anything was done to its logits.

Sampling divides logits by the temperature and adds penalties and biases in place. So they are read before, those of the
rows that ask alone: a copy of rows x vocabulary floats, kept until the token is known, and as much again while it is
read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from geomcli.server_patch.values import LOGIT_STATISTICS


class Before:
    """Logits [m, V] of `rows` of a batch as the model gave them, and what they say without the token."""

    def __init__(self, rows: torch.Tensor, logits: torch.Tensor) -> None:
        self.rows, self._logits = rows, logits
        top = logits.topk(2, dim=-1).values
        self._lse = logits.logsumexp(dim=-1)
        weighted = (logits - self._lse[:, None]).exp_().mul_(logits)
        # Where a logit is -inf its share is 0, and 0 x inf no number; of a row without a sum lse is no number either.
        expected = weighted.nan_to_num_(nan=0.0).sum(dim=-1)
        self._entropy = (self._lse - expected) / math.log(2)
        self._margin = top[:, 0] - top[:, 1]

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 [1, B, 3] in the order of LOGIT_STATISTICS, nan in other rows; tokens [B]: those that were chosen."""
        chosen = self._logits.gather(1, tokens[self.rows].long()[:, None])[:, 0]
        found = torch.stack([chosen - self._lse, self._entropy.clamp_min(0), self._margin], dim=1)
        made = torch.full((1, tokens.shape[0], len(LOGIT_STATISTICS)), torch.nan, device=found.device)
        made[0, self.rows] = found
        return made


class Logits:
    """What a step keeps of logits. rows: those that ask for it; found: float32 [1, B, 3], once it has been sampled."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.found: torch.Tensor | None = None
        self._before: Before | None = None

    def read(self, logits: torch.Tensor) -> None:
        """Before sampling: logits [B, V]."""
        rows = torch.tensor(self.rows, pin_memory=logits.device.type == "cuda")
        rows = rows.to(logits.device, non_blocking=True)
        self._before = Before(rows, logits.index_select(0, rows).float())

    def finish(self, tokens: torch.Tensor) -> None:
        """After it: tokens [B]; nan where the logits could not be read."""
        before, self._before = self._before, None
        if before is not None:
            self.found = before.of(tokens)

    def all_ranks(self, n: int, device: torch.device) -> torch.Tensor:
        """What is known of n rows, to be sent or received: nothing that one rank alone lacks may change its size."""
        if self.found is None:
            self.found = torch.full((1, n, len(LOGIT_STATISTICS)), torch.nan, device=device)
        return self.found
