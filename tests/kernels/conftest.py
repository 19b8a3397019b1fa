"""The Triton kernels run on a GPU where there is one, else in Triton's interpreter, which must be on from the start."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("without a GPU these tests need Triton's interpreter: TRITON_INTERPRET=1 pytest tests/kernels")
