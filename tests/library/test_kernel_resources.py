"""The kernels compile for sm_90 without a GPU, and keep to a multiprocessor's registers."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from geomcli.kernels.probe import splits_for
from geomcli.server_patch.server_options import MIN_CHUNK

_SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kernel_resources.py"


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_resources", _SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kernel", ["partial", "mean", "finish"])
def test_no_kernel_spills_with_the_smallest_chunks(report: ModuleType, kernel: str) -> None:
    for shape in ("GQA 32/8/128", "MLA 128/1/576"):
        binary = report.compiled(kernel, report.SHAPES[shape], "bf16", tapped=False, splits=splits_for(MIN_CHUNK))
        found = report.resources(binary)
        assert found["spill_stores"] == found["spill_loads"] == 0, shape
        assert found["shared"] <= 48 * 1024


_KERNELS = [
    ("partial", "probe"), ("mean", "probe"), ("partial", "tap"), ("mean", "tap"), ("finish", "probe"),
    ("column", "probe"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kernel", "source", "shape"),
    [(*kernel, shape) for shape in ("GQA 32/8/128", "MLA 128/1/576") for kernel in _KERNELS]
    + [(kernel, "probe", "GQA 32/8/128") for kernel in ("derotation", "read", "chosen")],
)
def test_no_kernel_spills_for_keys_of_16_bits(report: ModuleType, kernel: str, source: str, shape: str) -> None:
    binary = report.compiled(kernel, report.SHAPES[shape], "bf16", tapped=source == "tap")
    found = report.resources(binary)
    assert found["spill_stores"] == found["spill_loads"] == 0
    assert 0 < found["registers"] <= 255
    assert found["shared"] <= 48 * 1024  # more has to be asked for at launch
