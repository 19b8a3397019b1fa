"""The 20-float fingerprint of one attention row: layout, log-distance bins, bands, packing.

Numpy only. `docs/geometry.md` holds the definitions; `geomcli.kernels.reference` computes the same histogram on
tensors. Knows nothing of zones, requests or servers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

N_BINS = 16
FINGERPRINT_SIZE = 20
FINGERPRINT_BYTES = FINGERPRINT_SIZE * 4
LOCAL, MID, LONG, BIN_ENTROPY = 0, 1, 2, 3
LOCAL_BINS = slice(0, 3)  # distance 0..7
MID_BINS = slice(3, 8)  # distance 8..255
LONG_BINS = slice(8, 16)  # distance 256 and more
BAND_PRESETS = {
    "default": (LOCAL_BINS, MID_BINS, LONG_BINS),
    "wide": (slice(0, 5), slice(5, 8), slice(8, 16)),
}

Floats = NDArray[np.float64]


def distance_bin(distance: NDArray[Any] | int) -> NDArray[np.int64]:
    """Log-distance bin of `distance = query_position - key_position` (tokens, >= 0).

    Bin 0 holds {0, 1}, bin b holds [2^b, 2^(b+1) - 1], bin 15 everything from 32768 on.
    """
    d = np.asarray(distance, dtype=np.int64)
    if d.size and int(d.min()) < 0:
        raise ValueError(f"distance must be >= 0, got {int(d.min())}")
    # frexp is exact for integers below 2^53; a float log2 is not at powers of two.
    _, exponent = np.frexp(np.maximum(d, 1).astype(np.float64))
    return np.minimum(exponent.astype(np.int64) - 1, N_BINS - 1)


def bin_edges() -> list[tuple[int, int | None]]:
    """First and last distance of each bin; the last bin is open."""
    edges: list[tuple[int, int | None]] = [(0, 1)]
    edges += [(2**b, 2 ** (b + 1) - 1) for b in range(1, N_BINS - 1)]
    return [*edges, (2 ** (N_BINS - 1), None)]


def distance_histogram(
    probabilities: NDArray[Any],
    query_position: int,
    *,
    sink_tokens: int = 4,
    first_key: int = 0,
) -> Floats:
    """Mass per log-distance bin over non-sink keys, renormalised to sum 1; all zero when no mass is left.

    `probabilities`: [n_keys], head-mean attention on positions first_key .. first_key + n_keys - 1.
    `first_key`: positions before it (masked or outside the window) carry no number at all.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    positions = np.arange(first_key, first_key + p.shape[0])
    keep = positions >= sink_tokens
    hist = np.bincount(distance_bin(query_position - positions[keep]), weights=p[keep], minlength=N_BINS)
    total = hist.sum()
    return hist / total if total > 0 else np.zeros(N_BINS)


def bin_entropies(hists: NDArray[Any]) -> Floats:
    """Entropy of each histogram [..., 16] over ln 16: 0 for one bin, 1 for the uniform histogram."""
    h = np.asarray(hists, dtype=np.float64)
    logs = np.log(h, out=np.zeros_like(h), where=h > 0)
    made: Floats = np.clip(-(h * logs).sum(axis=-1) / np.log(N_BINS), 0.0, 1.0)
    return made


def bin_entropy(hist: NDArray[Any]) -> float:
    """`bin_entropies` of one histogram [16]."""
    return float(bin_entropies(hist))


def fingerprints_from_histograms(hists: NDArray[Any]) -> NDArray[np.float32]:
    """[local, mid, long, bin_entropy, hist[0..15]] as float32 [..., 20] of histograms [..., 16] of sum 1 or 0."""
    h = np.asarray(hists, dtype=np.float64)
    if h.shape[-1:] != (N_BINS,):
        raise ValueError(f"histograms must have shape (..., {N_BINS}), got {h.shape}")
    made = np.empty((*h.shape[:-1], FINGERPRINT_SIZE), dtype=np.float32)
    for place, bins in ((LOCAL, LOCAL_BINS), (MID, MID_BINS), (LONG, LONG_BINS)):
        made[..., place] = h[..., bins].sum(axis=-1)
    made[..., BIN_ENTROPY] = bin_entropies(h)
    made[..., FINGERPRINT_SIZE - N_BINS :] = h
    return made


def fingerprint_from_histogram(hist: NDArray[Any]) -> NDArray[np.float32]:
    """Fingerprint [20] of one histogram [16]."""
    h = np.asarray(hist, dtype=np.float64)
    if h.shape != (N_BINS,):
        raise ValueError(f"histogram must have shape ({N_BINS},), got {h.shape}")
    return fingerprints_from_histograms(h)


def fingerprint_from_probabilities(
    probabilities: NDArray[Any], query_position: int, *, sink_tokens: int = 4, first_key: int = 0
) -> NDArray[np.float32]:
    """Fingerprint [20] of one head-mean attention row; arguments as in `distance_histogram`."""
    hist = distance_histogram(probabilities, query_position, sink_tokens=sink_tokens, first_key=first_key)
    return fingerprint_from_histogram(hist)


def mean_histogram(histograms: NDArray[Any], weights: NDArray[Any]) -> Floats:
    """Head-weighted mean over layers of histograms [L, ..., 16], weights [L, ...]; empty layers do not count."""
    h = np.asarray(histograms, dtype=np.float64)
    w = np.asarray(weights, dtype=np.float64) * (h.sum(axis=-1) > 0)
    total = w.sum(axis=0)[..., None]
    made: Floats = np.divide((w[..., None] * h).sum(axis=0), total, out=np.zeros(h.shape[1:]), where=total > 0)
    return made


def pack(fingerprint: NDArray[Any]) -> bytes:
    """80 bytes, little-endian float32."""
    f = np.asarray(fingerprint, dtype="<f4")
    if f.shape != (FINGERPRINT_SIZE,):
        raise ValueError(f"fingerprint must have shape ({FINGERPRINT_SIZE},), got {f.shape}")
    return f.tobytes()


def unpack(blob: bytes) -> NDArray[np.float32]:
    """Inverse of `pack`; ValueError unless `blob` is 80 bytes."""
    if len(blob) != FINGERPRINT_BYTES:
        raise ValueError(f"a packed fingerprint is {FINGERPRINT_BYTES} bytes, got {len(blob)}")
    return np.frombuffer(blob, dtype="<f4").astype(np.float32)


def rounded(values: NDArray[Any] | Sequence[float], digits: int = 6) -> Any:
    """Nested lists of the values to `digits` significant digits: what the wire carries."""
    return rounded_array(values, digits).tolist()


def rounded_array(values: NDArray[Any] | Sequence[float], digits: int = 6) -> NDArray[np.float64]:
    """The same as an array."""
    v = np.asarray(values, dtype=np.float64)
    size = np.abs(v)
    exponent = np.floor(np.log10(size, out=np.zeros_like(size), where=size > 0))
    # Dividing by an exact power of ten gives the double that is nearest to the decimal number.
    scale = 10.0 ** (digits - 1 - np.clip(exponent, -300, 300))
    small = np.round(v * scale) / scale
    return np.where(exponent < digits, small, np.round(v))


def round_significant(value: float, digits: int = 6) -> float:
    """`value` to `digits` significant digits: what the wire carries."""
    return float(f"{value:.{digits}g}")
