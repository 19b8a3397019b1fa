"""What the capture kernels take of a multiprocessor: registers, spills and shared memory, compiled for sm_90.

    python benchmarks/kernel_resources.py [--triton 3.6.0 3.7.1 …] [--json FILE]

Needs no GPU: Triton compiles for a target, its own ptxas reports. Without --triton the installed version is used; each
named version is fetched once into the environment and runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGET = 90
SHAPES = {"GQA 32/8/128": (32, 8, 128), "MLA 128/1/576": (128, 1, 576), "GQA 9/3/64": (9, 3, 64)}
# Key types: name in the table -> name in Triton.
TYPES = {"bf16": "bf16", "fp16": "fp16", "fp8": "fp8e4nv", "fp32": "fp32"}


def compiled(name: str, shape: tuple[int, int, int], key_type: str, *, tapped: bool, splits: int = 8) -> Any:
    """The kernel as `probe.launch` would have it compiled for this shape; `splits`: parts of a row."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from geomcli.kernels import columns, derotated_links, finish, logit_statistics, partial, probe
    from geomcli.kernels.buffers import Buffers, Layer, Shape
    from geomcli.kernels.derotation import Rope

    kernel = {
        "partial": partial.partial_kernel,
        "mean": finish.mean_kernel,
        "finish": finish.finish_kernel,
        "column": columns.column_kernel,
        "derotation": derotated_links.derotation_kernel,
        "read": logit_statistics.read_kernel,
        "chosen": logit_statistics.chosen_kernel,
    }[name]
    seen: dict[str, Any] = {}

    class Launch:
        def __getitem__(self, _grid: Any) -> Any:
            def call(*args: Any, **constants: Any) -> None:
                seen.setdefault("args", args)
                seen.setdefault("constants", constants)

            return call

    heads, key_heads, dim = shape
    buffers = Buffers(Shape(heads, key_heads, dim), layers=[Layer(1.0)] * 4, rows=2, pool_rows=2, device="cpu",
                      tap_length=64 if tapped else 0, means_length=64, splits=splits)  # fmt: skip
    buffers.use_keys([torch.zeros(64, key_heads, dim).to(_key_dtype(key_type))] * 4)
    rows = probe.Rows(1, torch.zeros(1, dtype=torch.int64), torch.ones(1, dtype=torch.int64),
                      torch.zeros(64, dtype=torch.int64), torch.zeros(2, dtype=torch.int32))  # fmt: skip
    originals = {(m, n): getattr(m, n) for m, n in _launched(probe, columns, derotated_links, logit_statistics)}
    try:
        for module, other in originals:
            setattr(module, other, Launch() if other == f"{name}_kernel" else _Ignored())
        probe.launch(buffers, rows, tapped=tapped, splits=splits)
        columns.accumulate(buffers, rows, torch.zeros(4, 2, 64))
        derotated_links.launch(
            buffers, buffers.records, ropes=[(Rope(torch.zeros(64, min(dim, 128)), False), rows.pool)],
            chosen=rows.pool, pool=rows.pool, slots=torch.zeros(2, 64, dtype=torch.int32),
        )  # fmt: skip
        logits = torch.zeros(2, 151_936, dtype=_key_dtype(key_type))
        logit_statistics.finish(logit_statistics.read(logits, rows.pool), torch.zeros(2, dtype=torch.int64))
    finally:
        for (module, other), original in originals.items():
            setattr(module, other, original)
    signature, constants = {}, dict(seen["constants"])
    warps = constants.pop("num_warps", 4)
    names = [p.name for p in kernel.params]
    query_type = "fp32" if key_type == "fp32" else "fp16" if key_type == "fp16" else "bf16"
    for parameter, value in zip(names, seen["args"], strict=False):
        if isinstance(value, torch.Tensor):
            own = {"queries": query_type, "keys": key_type}.get(parameter)
            signature[parameter] = "*" + (own or _pointer(value.dtype))
        else:
            signature[parameter] = "i32"
    signature |= dict.fromkeys(constants, "constexpr")
    # As a launch would find them: pointers and integers that are multiples of 16 say so.
    given = dict(zip(names, seen["args"], strict=False))
    multiples = [p for p, v in given.items() if isinstance(v, torch.Tensor) or v % 16 == 0]
    aligned = {(names.index(p),): [["tt.divisibility", 16]] for p in multiples}
    constants["WIDEN"] = False
    if "WIDEN" not in names:
        constants.pop("WIDEN")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", TARGET, 32), options={"num_warps": warps})


def _launched(probe: Any, columns: Any, derotated_links: Any, logit_statistics: Any) -> list[tuple[Any, str]]:
    return [
        (probe, "partial_kernel"), (probe, "mean_kernel"), (probe, "finish_kernel"), (columns, "column_kernel"),
        (derotated_links, "derotation_kernel"), (logit_statistics, "read_kernel"), (logit_statistics, "chosen_kernel"),
    ]  # fmt: skip


class _Ignored:
    def __getitem__(self, _grid: Any) -> Any:
        return lambda *_args, **_constants: None


def _key_dtype(name: str) -> Any:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8e4nv": torch.float8_e4m3fn, "fp32": torch.float32}[name]


def _pointer(dtype: Any) -> str:
    import torch

    return {torch.float32: "fp32", torch.int32: "i32", torch.int64: "i64", torch.bfloat16: "bf16"}[dtype]


def resources(binary: Any) -> dict[str, int]:
    """Registers and spill bytes by Triton's own ptxas, shared memory by its compiler, and the warps."""
    import triton

    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(binary.asm["ptx"])
        ran = subprocess.run(
            [str(ptxas), "-v", f"--gpu-name=sm_{TARGET}a", str(source), "-o", os.devnull],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    said = ran.stderr

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found.group(1)) if found else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_stores": number(r"(\d+) bytes spill stores"),
        "spill_loads": number(r"(\d+) bytes spill loads"),
        "shared": binary.metadata.shared,
        "warps": binary.metadata.num_warps,
    }


def report() -> list[dict[str, Any]]:
    """Every kernel, shape and key type with the Triton that is importable here."""
    import triton

    rows = []
    for shape_name, shape in SHAPES.items():
        for key_name, key_type in TYPES.items():
            for source in ("probe", "tap"):
                for kernel in ("partial", "mean", "finish", "column", "derotation"):
                    # Stored logits have one type, and the last kernels read neither.
                    last = kernel in ("finish", "column")
                    if (key_name != "bf16" and (source == "tap" or last)) or (last and source == "tap"):
                        continue
                    if kernel == "derotation" and (source == "tap" or shape_name.startswith("MLA")):
                        continue
                    binary = compiled(kernel, shape, key_type, tapped=source == "tap")
                    about = {"kernel": kernel, "source": source, "shape": shape_name, "keys": key_name}
                    rows.append({"triton": triton.__version__, **about, **resources(binary)})
    return rows


def with_version(version: str) -> list[dict[str, Any]]:
    """The report of a process that imports this Triton release, fetched into the environment once."""
    folder = Path(sys.prefix) / "triton-releases" / version
    if not folder.exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, f"triton=={version}"], check=True)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, "--json", "/dev/stdout", "--quiet"]
    ran = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if not ran.stdout:
        sys.exit(f"Triton {version}: {ran.stderr[-2000:]}")
    return list(json.loads(ran.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--triton", nargs="*", default=[], metavar="VERSION", help="releases to compile with")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--quiet", action="store_true", help="print no table")
    arguments = parser.parse_args()
    rows = [row for version in arguments.triton for row in with_version(version)] if arguments.triton else report()
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    if not arguments.quiet:
        print("| Triton | kernel | source | heads/key heads/width | keys | registers | spilled B | shared B | warps |")
        print("|---|---|---|---|---|---|---|---|---|")
        for r in rows:
            spilled = r["spill_stores"] + r["spill_loads"]
            print(f"| {r['triton']} | {r['kernel']} | {r['source']} | {r['shape']} | {r['keys']} | {r['registers']} | "
                  f"{spilled} | {r['shared']} | {r['warps']} |")  # fmt: skip


if __name__ == "__main__":
    main()
