"""Scheduler process: how sure the model itself was of each token, before anything was done to its logits.

Sampling divides logits by the temperature and adds penalties and biases in place. So they are read before, those of the
rows that ask alone: a copy of rows x vocabulary logits, kept until the token is known. On a GPU a kernel reads them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from geomcli.server_patch.values import LOGIT_STATISTICS


class Before:
    """What logits [m, V] of `rows` of a batch, as the model gave them, say without the token; uses up their memory."""

    def __init__(self, rows: torch.Tensor, logits: torch.Tensor) -> None:
        self.rows = rows
        top = logits.topk(2, dim=-1).values
        self._margin = top[:, 0] - top[:, 1]
        self._logprobs = logits.sub_(logits.logsumexp(dim=-1, keepdim=True))
        # -inf has no share, and 0 x inf is no number; where a whole row is none, its logprobs say so.
        shares = self._logprobs.exp().mul_(self._logprobs).nan_to_num_(nan=0.0)
        self._entropy = shares.sum(dim=-1) / -math.log(2)

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """float32 [1, B, 3] in the order of LOGIT_STATISTICS, nan in other rows; tokens [B]: those that were chosen."""
        chosen = self._logprobs.gather(1, tokens[self.rows].long()[:, None])[:, 0]
        found = torch.stack([chosen, self._entropy.clamp_min(0), self._margin], dim=1)
        made = torch.full((1, tokens.shape[0], len(LOGIT_STATISTICS)), torch.nan, device=found.device)
        made[0, self.rows] = found
        return made


class Fused:
    """The same, by a kernel."""

    def __init__(self, rows: torch.Tensor, logits: torch.Tensor) -> None:
        from geomcli.kernels import logit_statistics as kernel  # the CPU's engine does without Triton

        self._read, self._finish = kernel.read(logits, rows), kernel.finish

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._finish(self._read, tokens)[None]


class Logits:
    """What a step keeps of logits. rows: those that ask for it; found: float32 [1, B, 3], once it has been sampled."""

    def __init__(self, rows: Sequence[int]) -> None:
        self.rows = rows
        self.found: torch.Tensor | None = None
        self._before: Before | Fused | None = None

    def read(self, logits: torch.Tensor) -> None:
        """Before sampling: logits [B, V]."""
        rows = torch.tensor(self.rows, pin_memory=logits.device.type == "cuda")
        rows = rows.to(logits.device, non_blocking=True)
        if logits.is_cuda:
            self._before = Fused(rows, logits)
        else:
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
