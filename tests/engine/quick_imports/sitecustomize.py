"""A fifth of what an engine's imports take is the collection of garbage, a seventh scikit-learn, which transformers
takes along where it is there and no engine needs. Nothing of both is tested here."""

import gc
import os
import sys

gc.set_threshold(100_000, 50, 100)
if "SGLANG_USE_CPU_ENGINE" in os.environ:
    sys.modules["sklearn"] = None  # type: ignore[assignment]
