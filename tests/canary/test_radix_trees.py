"""The policy `spectral` in SGLang's own prefix caches, of every supported release: their code runs, without a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import geomcli
from tests.canary.releases import VERSIONS, wheel

ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).with_name("radix_trees.py")


@pytest.fixture(scope="module", params=VERSIONS)
def trees(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What radix_trees.py finds in the release's sources: the tree of the unified cache and the older one."""
    folder = tmp_path_factory.mktemp(request.param)
    archive = wheel(request.param)
    archive.extractall(folder, [name for name in archive.namelist() if not name.endswith(".so")])
    package = Path(geomcli.__file__).parent
    # The release and the shim come before what else is installed beside the plugin.
    path = [str(package / "server_patch" / "cpu_shim"), str(folder), str(package.parent)]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "SGLANG_USE_CPU_ENGINE": "1", "SGLANG_PLUGINS": "none",
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python",
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-P", _SCRIPT, ROOT / "benchmarks" / "prefix_cache.py"],
        capture_output=True, text=True, env=environment, cwd=folder,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    found: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert found.pop("release") == request.param
    return found


@pytest.mark.parametrize("kind", ["unified", "radix"])
def test_weight_zero_evicts_what_lru_does_in_the_same_order(trees: dict[str, Any], kind: str) -> None:
    lru, zero = trees[kind]["lru"], trees[kind]["zero"]
    assert len(lru["evicted"]) > 100
    assert zero["evicted"] == lru["evicted"]
    assert zero["hits"] == lru["hits"]


@pytest.mark.parametrize("kind", ["unified", "radix"])
def test_attention_changes_what_leaves_and_no_slot_is_lost(trees: dict[str, Any], kind: str) -> None:
    lru, spectral = trees[kind]["lru"], trees[kind]["spectral"]
    assert spectral["evicted"] != lru["evicted"]
    for found in (lru, spectral):
        assert found["free"] + found["held"]["tokens"] == found["size"]
    assert spectral["held"]["wrong"] == 0
    assert spectral["held"]["known"] > 5


@pytest.mark.parametrize("kind", ["unified", "radix"])
def test_a_split_node_keeps_what_each_of_its_tokens_received(trees: dict[str, Any], kind: str) -> None:
    found = trees[kind]["splits"]
    assert found["nodes"] == 5
    assert found["error"] == 0
    assert found["foreign"] == []


@pytest.mark.parametrize("kind", ["unified", "radix"])
def test_the_prefix_that_was_looked_at_survives_the_one_that_was_not(trees: dict[str, Any], kind: str) -> None:
    """The first of two was used one request earlier: lru lets it go, whatever was looked at."""
    assert trees[kind]["survivors"] == {
        "lru": [[False, True], [False, True]], "spectral": [[True, False], [False, True]]
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["unified", "radix"])
def test_of_conversations_only_the_beginning_that_they_share_is_valued(trees: dict[str, Any], kind: str) -> None:
    assert trees[kind]["conversations"] == list(range(1000, 1100))
