"""Where the numbers of one captured row lie: the control table that goes in, the record that comes out.

Both are flat int32 so that one copy moves them; floats are stored by their bits. Offsets are in 4-byte words.
"""

from __future__ import annotations

from geomcli.compass import PROFILE_SIZE
from geomcli.fingerprint import N_BINS

BINS = N_BINS
PROFILE = PROFILE_SIZE
KEEP = 64  # links found, the most that a request may ask for
ALIGNMENT = 16  # floats: where rows of stored logits begin, and walks over them
TAP_OVERREAD = 4096  # floats behind the last row of stored logits, no less than a tile of keys
MAX_HEADS = 128
_HEADS_PER_WORD = 32

# Control table: one row for each slot of the engine's request pool. Slot 0 pads CUDA graphs and stays disabled.
C_ENABLED = 0
C_STAMP = 1  # which request the row was written for
C_LAYERS = 2  # bit i: the i-th captured layer
C_PROMPT_LEN = 3
C_MASK_PREFIX = 4
C_WINDOW = 5  # 0: all keys
C_SINK_TOKENS = 6
C_TOP_K = 7
C_STRIDE = 8
C_LIMIT = 9  # captured steps, 0: all
C_HEADS = 10  # bit h: the h-th local query head; four words
C_GONE = 14  # keys that have left the pool
C_KEPT = 15  # keys whose place in the text is listed; those behind them follow without a gap
CONTROL_WORDS = 16

# Layer tables: one row of floats and one of int64 for each captured layer.
L_SCALE = 0
L_CAP = 1  # 0: none
L_WINDOW = 0  # -1: none
L_KEYS = 1  # elements from the first captured layer's keys to this layer's
LAYER_WORDS = 2

# Record: one for each captured layer and batch row.
R_STAMP = 0
R_LENGTH = 1  # of the text: keys of the row, masked ones and those that have left included
R_HEADS = 2  # heads averaged over
R_LINKS = 3  # links found, at most top_k
R_LSE = 4  # mean over heads
R_ENTROPY = 5  # mean over heads, nats
R_SINK = 6
R_KEPT = 7  # keys that are still there
R_HISTOGRAM = 8  # head-mean mass of each distance bin, sinks left out, not normalised
R_PROFILE = R_HISTOGRAM + BINS  # head-mean mass at distance 0, 1, …, sinks left out
R_POSITIONS = R_PROFILE + PROFILE
R_PROBABILITIES = R_POSITIONS + KEEP
RECORD_WORDS = R_PROBABILITIES + KEEP

# Per-head export: one for each captured layer, batch row and local query head.
H_LSE = 0
H_ENTROPY = 1  # nats
H_SINK = 2
H_PREVIOUS = 3
H_SELF = 4
H_PROMPT = 5  # mass on prompt keys
H_GENERATED = 6  # mass on generated keys
HEAD_WORDS = 8

# Scores of links, rows of KEEP floats: one set for each captured layer and batch row that asks for the de-rotated view.
D_CONTENT = 0
D_POSITION = 1
D_WEIGHT = 2  # log of the link's p summed over the rank's heads
DEROTATED_WORDS = 3

# One split of one head on its way: mass is relative to the split's own maximum.
P_MAX = 0
P_SUM = 1
P_SURPRISE = 2  # sum of e^(s - max) (s - max)
P_SINK = 3
P_PREVIOUS = 4
P_SELF = 5
P_PROMPT = 6
P_HISTOGRAM = 8
PARTIAL_WORDS = P_HISTOGRAM + BINS


def head_words(heads: tuple[int, ...] | None, count: int) -> list[int]:
    """The four control words that select `heads` (None: all of `count`) as signed 32-bit integers."""
    if count > MAX_HEADS:
        raise ValueError(f"{count} query heads are more than the {MAX_HEADS} that capture has bits for")
    bits = sum(1 << h for h in (range(count) if heads is None else heads))
    words = [bits >> shift & 0xFFFFFFFF for shift in range(0, MAX_HEADS, _HEADS_PER_WORD)]
    return [word - (1 << 32) if word >> 31 else word for word in words]
