"""What the tap adds to SGLang's own decode kernels: registers, spills and shared memory, compiled for sm_90.

    python benchmarks/tapped_decode.py [--json FILE]

Needs no GPU: the installed SGLang is called with its kernels replaced by a recorder of their arguments, then each is
compiled as it would have been launched, with and without `tap.store_logits`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("SGLANG_USE_CPU_ENGINE", "1")
# Beside this script: the same compiler calls for our own kernels.
sys.path.insert(0, str(Path(__file__).parent))

SHAPES = {"GQA 32/8/128": (32, 8, 128), "MHA 8/8/64": (8, 8, 64), "MLA 16/1/576": (16, 1, 576)}


class Recorder:
    """Stands in for a kernel: keeps how it was launched."""

    def __init__(self) -> None:
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __getitem__(self, _grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.args, self.kwargs = args, kwargs

        return launch


def launched(shape: tuple[int, int, int]) -> list[tuple[str, Any, Recorder]]:
    """(name, kernel, recorder) of the first stage of a tapped decode step of this shape in bf16."""
    import torch
    from sglang.kernels.ops.attention import decode_attention as sglang_decode

    from geomcli.kernels import tap

    heads, key_heads, dim = shape
    names = [n for n in dir(sglang_decode) if n.startswith("_fwd") and hasattr(getattr(sglang_decode, n), "fn")]
    kernels = {name: getattr(sglang_decode, name) for name in names}
    recorders = {name: Recorder() for name in names}
    query, keys = torch.zeros(2, heads, dim).bfloat16(), torch.zeros(64, key_heads, dim).bfloat16()
    try:
        for name in names:
            setattr(sglang_decode, name, recorders[name])
        sglang_decode.decode_attention_fwd(
            query, keys, keys.clone(), torch.zeros_like(query), torch.zeros(3, dtype=torch.int32),
            torch.zeros(64, dtype=torch.int64), torch.zeros(2, heads, 8, dim), torch.zeros(2, heads, 8),
            torch.ones(2, dtype=torch.int32), 8, 1.0, 1.0, 1.0, score_mod=tap.store_logits,
            aux_tensors=[torch.zeros(2, heads, 65)],
        )  # fmt: skip
    finally:
        for name in names:
            setattr(sglang_decode, name, kernels[name])
    return [(n, kernels[n], recorders[n]) for n in names if recorders[n].args and "stage1" in n]


def compiled(kernel: Any, launch: Recorder, *, tapped: bool) -> Any:
    """The kernel for sm_90 as this launch would have it, with or without its score_mod."""
    import torch
    import triton
    from kernel_resources import TARGET
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.int32: "i32", torch.int64: "i64"}
    names = [p.name for p in kernel.params]
    values = {**dict(zip(names, launch.args, strict=False)), **launch.kwargs}
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    for parameter in kernel.params:
        value = values.get(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + types[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
    if not tapped:
        constants["SCORE_MOD"] = None
    # As a launch would find them: pointers, and integers that are multiples of 16, say so; strides of 1 are constants.
    for name, kind in signature.items():
        if kind == "i32" and values[name] == 1:
            signature[name], constants[name] = "constexpr", 1
    multiples = [n for n in names if signature[n].startswith("*") or (signature[n] == "i32" and values[n] % 16 == 0)]
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in multiples}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    options = {k: v for k, v in launch.kwargs.items() if k in ("num_warps", "num_stages")}
    return triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options=options)


def report() -> list[dict[str, Any]]:
    from kernel_resources import resources

    return [
        {"kernel": name, "shape": shape_name, "tapped": tapped, **resources(compiled(kernel, launch, tapped=tapped))}
        for shape_name, shape in SHAPES.items()
        for name, kernel, launch in launched(shape)
        for tapped in (False, True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    rows = report()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    for row in rows:
        print(" ".join(f"{key}={value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
