"""The installed SGLang's decode kernels compile for sm_90 with the tap in them, without more spills."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Of a multiprocessor of compute capability 9.0, and what the system takes of its shared memory for each block
# (CUDA C++ Programming Guide, table of technical specifications per compute capability).
REGISTERS, SHARED, SHARED_OF_SYSTEM = 65_536, 228 * 1024, 1024


def blocks_by_registers(row: dict[str, int]) -> int:
    return REGISTERS // (row["registers"] * 32 * row["warps"])


def blocks_by_shared_memory(row: dict[str, int]) -> int:
    return SHARED // (row["shared"] + SHARED_OF_SYSTEM)


def test_the_tap_spills_nothing_and_its_shared_memory_keeps_no_block_out(tmp_path: Path) -> None:
    plugin = find_spec("geomcli.server_patch")
    assert plugin is not None
    assert plugin.origin is not None
    path = os.pathsep.join([str(Path(plugin.origin).parent / "cpu_shim"), os.environ.get("PYTHONPATH", "")])
    script, found = ROOT / "benchmarks" / "tapped_decode.py", tmp_path / "report.json"
    ran = subprocess.run(
        [sys.executable, "-P", str(script), "--json", str(found)],
        env={**os.environ, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    rows = {(r["shape"], r["tapped"]): r for r in json.loads(found.read_text())}
    assert len(rows) == 6
    for shape in ("GQA 32/8/128", "MHA 8/8/64", "MLA 16/1/576"):
        plain, tapped = rows[shape, False], rows[shape, True]
        assert tapped["spill_stores"] <= plain["spill_stores"]
        # Storing a row as it lies in memory takes the store's own layout: 32 x 8 floats.
        assert tapped["shared"] - plain["shared"] <= 1024
        assert blocks_by_shared_memory(tapped) >= min(blocks_by_shared_memory(plain), blocks_by_registers(tapped))
