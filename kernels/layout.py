"""Where the numbers of one captured row lie: the control table that goes in, the record that comes out.

Both are flat int32 so that one copy moves them; floats are stored by their bits. Offsets are in 4-byte words.
"""

from __future__ import annotations

import triton.language as tl

from geomcli.compass import PROFILE_SIZE
from geomcli.fingerprint import N_BINS

# constexpr rather than int: kernels may read them as globals, and Triton's cache notices when one changes.
BINS = tl.constexpr(N_BINS)
PROFILE = tl.constexpr(PROFILE_SIZE)
KEEP = tl.constexpr(64)  # links found, the most that a request may ask for
ALIGNMENT = tl.constexpr(16)  # floats: where rows of stored logits begin, and walks over them
TAP_OVERREAD = 4096  # floats behind the last row of stored logits, no less than a tile of keys
MAX_HEADS = 128
_HEADS_PER_WORD = 32

# Control table: one row for each slot of the engine's request pool. Slot 0 pads CUDA graphs and stays disabled.
C_ENABLED = tl.constexpr(0)
C_STAMP = tl.constexpr(1)  # which request the row was written for
C_LAYERS = tl.constexpr(2)  # bit i: the i-th captured layer
C_PROMPT_LEN = tl.constexpr(3)
C_MASK_PREFIX = tl.constexpr(4)
C_WINDOW = tl.constexpr(5)  # 0: all keys
C_SINK_TOKENS = tl.constexpr(6)
C_TOP_K = tl.constexpr(7)
C_STRIDE = tl.constexpr(8)
C_LIMIT = tl.constexpr(9)  # captured steps, 0: all
C_HEADS = tl.constexpr(10)  # bit h: the h-th local query head; four words
CONTROL_WORDS = tl.constexpr(16)

# Layer tables: one row of floats and one of int64 for each captured layer.
L_SCALE = tl.constexpr(0)
L_CAP = tl.constexpr(1)  # 0: none
L_WINDOW = tl.constexpr(0)  # -1: none
L_KEYS = tl.constexpr(1)  # elements from the first captured layer's keys to this layer's
LAYER_WORDS = tl.constexpr(2)

# Record: one for each captured layer and batch row.
R_STAMP = tl.constexpr(0)
R_LENGTH = tl.constexpr(1)  # keys of the row, masked ones included
R_HEADS = tl.constexpr(2)  # heads averaged over
R_LINKS = tl.constexpr(3)  # links found, at most top_k
R_LSE = tl.constexpr(4)  # mean over heads
R_ENTROPY = tl.constexpr(5)  # mean over heads, nats
R_SINK = tl.constexpr(6)
R_HISTOGRAM = tl.constexpr(8)  # head-mean mass of each distance bin, sinks left out, not normalised
R_PROFILE = tl.constexpr(R_HISTOGRAM + BINS)  # head-mean mass at distance 0, 1, …, sinks left out
R_POSITIONS = tl.constexpr(R_PROFILE + PROFILE)
R_PROBABILITIES = tl.constexpr(R_POSITIONS + KEEP)
RECORD_WORDS = tl.constexpr(R_PROBABILITIES + KEEP)

# Per-head export: one for each captured layer, batch row and local query head.
H_LSE = tl.constexpr(0)
H_ENTROPY = tl.constexpr(1)  # nats
H_SINK = tl.constexpr(2)
H_PREVIOUS = tl.constexpr(3)
H_SELF = tl.constexpr(4)
H_PROMPT = tl.constexpr(5)  # mass on prompt keys
H_GENERATED = tl.constexpr(6)  # mass on generated keys
HEAD_WORDS = tl.constexpr(8)

# One split of one head on its way: mass is relative to the split's own maximum.
P_MAX = tl.constexpr(0)
P_SUM = tl.constexpr(1)
P_SURPRISE = tl.constexpr(2)  # sum of e^(s - max) (s - max)
P_SINK = tl.constexpr(3)
P_PREVIOUS = tl.constexpr(4)
P_SELF = tl.constexpr(5)
P_PROMPT = tl.constexpr(6)
P_HISTOGRAM = tl.constexpr(8)
PARTIAL_WORDS = tl.constexpr(P_HISTOGRAM + BINS)


def head_words(heads: tuple[int, ...] | None, count: int) -> list[int]:
    """The four control words that select `heads` (None: all of `count`) as signed 32-bit integers."""
    if count > MAX_HEADS:
        raise ValueError(f"{count} query heads are more than the {MAX_HEADS} that capture has bits for")
    bits = sum(1 << h for h in (range(count) if heads is None else heads))
    words = [bits >> shift & 0xFFFFFFFF for shift in range(0, MAX_HEADS, _HEADS_PER_WORD)]
    return [word - (1 << 32) if word >> 31 else word for word in words]
