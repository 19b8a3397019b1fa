"""Statistics of the heads that a request wants of one token, from what a step has of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from geomcli.kernels import records
from geomcli.server_patch.request_options import CaptureOptions


def of_sums(
    sums: NDArray[np.float32],
    windows: tuple[int, ...],
    options: CaptureOptions,
    layers: tuple[int, ...],
    prompt_len: int,
    length: int,
) -> NDArray[np.float32]:
    """[wanted layers, 4, wanted heads], from the sums [layers, H, HEAD_WORDS] of a row of so many keys."""
    found: NDArray[np.float32] = of_many(
        sums[:, None], windows, options, layers, np.array([prompt_len]), np.array([length])
    )[0]
    return found


def of_many(
    sums: NDArray[np.float32],
    windows: tuple[int, ...],
    options: CaptureOptions,
    layers: tuple[int, ...],
    prompt_len: NDArray[np.int64],
    length: NDArray[np.int64],
) -> NDArray[np.float32]:
    """[n, wanted layers, 4, wanted heads] of the sums [layers, n, H, HEAD_WORDS] of rows that want the same."""
    at = [layers.index(layer) for layer in options.layers]
    first = np.array([[options.first_key(keys - 1, windows[n]) for n in at] for keys in length.tolist()])
    every = np.moveaxis(sums[at], 0, 1)
    return records.head_statistics(every, options.heads, first, prompt_len[:, None], length[:, None])


def of_statistics(
    statistics: NDArray[np.float32], options: CaptureOptions, layers: tuple[int, ...]
) -> NDArray[np.float32]:
    """The same from finished ones [layers, 4, at least as many heads]."""
    count = options.heads_total if options.heads is None else len(options.heads)
    made: NDArray[np.float32] = statistics[[layers.index(layer) for layer in options.layers], :, :count]
    return made
