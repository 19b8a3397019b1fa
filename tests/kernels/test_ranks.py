"""Heads spread over processes: a gloo group of CPU processes, each with its own heads, against all heads in one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).parents[2]
# Behind the installed packages, whose names the repository's folders share.
_WORKER = f"import sys; sys.path.append({str(_ROOT)!r})\nimport json\nfrom tests.kernels.rank_worker import run\n"


@pytest.mark.parametrize(
    ("shape", "size", "variant", "sick"),
    [
        ([8, 4, 32], 2, {}, -1),
        ([6, 1, 16], 3, {"sinks": True}, -1),  # one key head, a copy of it on each rank
        ([8, 4, 32], 2, {"sliding_window": 30, "narrow": True, "prefill": True}, -1),
        ([8, 4, 32], 2, {}, 1),
    ],
    ids=["GQA", "MQA", "sliding-window", "one-rank-failed"],
)
def test_every_rank_gets_the_statistics_of_all_heads(
    tmp_path: Path, shape: list[int], size: int, variant: dict[str, Any], sick: int
) -> None:
    calls = [json.dumps([rank, size, str(tmp_path / "store"), shape, variant, sick]) for rank in range(size)]
    processes = [
        subprocess.Popen([sys.executable, "-P", "-c", f"{_WORKER}run(*json.loads({call!r}))"], stderr=subprocess.PIPE)
        for call in calls
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
