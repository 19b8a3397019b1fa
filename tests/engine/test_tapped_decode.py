"""The installed SGLang's decode kernels compile for sm_90 with the tap in them, and spill no more than without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tap_costs_no_registers_that_the_kernel_does_not_have(tmp_path: Path) -> None:
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
        assert tapped["shared"] == plain["shared"]
