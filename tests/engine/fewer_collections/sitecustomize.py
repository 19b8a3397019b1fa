"""Collects garbage less often: it is a fifth of what an engine's imports take, and nothing of what is tested."""

import gc

gc.set_threshold(100_000, 50, 100)
