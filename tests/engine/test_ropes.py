"""SGLang's own rotary embeddings, as its CPU engine applies them, undone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import geomcli

_KINDS = {
    "neox": {},
    "interleaved": {"is_neox_style": False},
    "partial": {"partial_rotary_factor": 0.5},
    "interleaved partial": {"partial_rotary_factor": 0.25, "is_neox_style": False},
    "llama3": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 64}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
    "dynamic alpha": {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0, "alpha": 3.0}},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
}  # fmt: skip
_SCRIPT = """
import json, sys, torch
from sglang.srt.layers.rotary_embedding import get_rope
from geomcli.kernels.derotation import derotated
from geomcli.server_patch.ropes import EMBEDDINGS, rope_of
found = {}
torch.manual_seed(0)
for name, options in json.loads(sys.argv[1]).items():
    embedding = get_rope(64, 64, 300, 10000, dtype=torch.float32, **options)
    query, key = torch.randn(300, 4 * 64), torch.randn(300, 64)
    positions = torch.randperm(300)
    turned, _ = embedding.forward_native(positions, query.clone(), key.clone())
    back = derotated(turned.view(300, 4, 64), positions, rope_of(embedding)).view(300, -1)
    factor = getattr(embedding, "mscale", 1.0)
    found[name] = {
        "known": type(embedding).__name__ in EMBEDDINGS, "moved": float((turned - query).abs().max()),
        "left": float((back - factor * query).abs().max()), "factor": factor,
    }
print(json.dumps(found))
"""


def test_every_embedding_that_is_undone_gives_back_what_it_was_given() -> None:
    shim = Path(geomcli.__file__).parent / "server_patch" / "cpu_shim"
    environment = {**os.environ, "PYTHONPATH": str(shim), "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", _SCRIPT, json.dumps(_KINDS)], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found.keys() == _KINDS.keys()
    for name, of_kind in found.items():
        assert of_kind["known"], name
        assert of_kind["moved"] > 1, name
        assert of_kind["left"] <= 2e-6, (name, of_kind)
    assert found["yarn"]["factor"] > 1.1
