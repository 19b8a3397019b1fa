"""Statistics of the heads of many rows are those of each row by itself."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from geomcli.kernels import layout
from geomcli.server_patch.head_numbers import of_many, of_sums
from geomcli.server_patch.request_options import CaptureOptions

LAYERS, HEADS, WINDOWS = (2, 5, 9), 6, (-1, 8, -1)
OPTIONS = CaptureOptions(
    mode="raw", top_k=4, layers=(5, 9), heads=None, heads_total=HEADS, mask_prefix=0, stride=1, limit=0, window=0,
    sink_tokens=4, head_stats=True, prompt_tokens=False,
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [OPTIONS, msgspec.structs.replace(OPTIONS, heads=(0, 4), layers=(2,)),
     msgspec.structs.replace(OPTIONS, mask_prefix=3, window=5)],
)  # fmt: skip
def test_of_many_rows(options: CaptureOptions) -> None:
    random = np.random.default_rng(0)
    prompts, lengths = np.array([7, 1, 12, 3]), np.array([7, 5, 30, 4])
    sums = random.uniform(0, 1, (len(LAYERS), len(prompts), HEADS, layout.HEAD_WORDS)).astype(np.float32)
    found = of_many(sums, WINDOWS, options, LAYERS, prompts, lengths)
    assert found.shape == (4, len(options.layers), 4, len(options.heads or range(HEADS)))
    for row, (prompt, length) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
        alone = of_sums(sums[:, row], WINDOWS, options, LAYERS, prompt, length)
        np.testing.assert_array_equal(found[row], alone)


def test_lookback_compares_means_of_what_counts() -> None:
    sums = np.zeros((1, 1, 1, layout.HEAD_WORDS), dtype=np.float32)
    sums[..., layout.H_PROMPT], sums[..., layout.H_GENERATED] = 0.6, 0.4
    options = msgspec.structs.replace(OPTIONS, layers=(2,), mask_prefix=2, heads_total=1)
    found = of_many(sums, (-1,), options, (2,), np.array([5]), np.array([9]))
    assert found[0, 0, 3, 0] == pytest.approx((0.6 / 3) / (0.6 / 3 + 0.4 / 4))
