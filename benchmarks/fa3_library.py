"""Trim sgl_kernel/flash_ops.abi3.so (FlashAttention-3 of SGLang) to what a bf16 model needs on one Hopper GPU.

usage: fa3_library.py WHEEL OUT.tar.xz [--head-dims 128,64] [--keep-so PATH]

WHEEL is a sglang_kernel wheel; OUT.tar.xz unpacks to sgl_kernel/flash_ops.abi3.so, over an installed sgl_kernel.
1.12 GB of library become about 10 MB of archive.

How: nvcc puts one "fat binary" per .cu file into the ELF section .nv_fatbin: a container header (magic BA55ED50,
version, header size, size of what follows) and then one entry (header, payload) per architecture.  Code finds a
container through a pointer in .nvFatBinSegment, never by walking the section, so each can shrink where it stands:
  * a needed container keeps its sm_90a entry, byte for byte, and loses sm_80 and sm_86: as if built for sm_90a alone;
  * any other container gets the library's smallest sm_80 entry alone, valid in itself (cuobjdump reads it) and the same
    each time, so that it packs away.  To the driver that is a file built for sm_80 alone: nothing for this GPU, and to
    launch a kernel of it is the ordinary "no kernel image is available for execution on the device", under lazy and
    eager module loading alike.
All other bytes freed become zeros.  Everything outside .nv_fatbin stays as it is, host code included, and no offset
moves.

Needed are the forward kernels of TILE_K = head dim = V head dim, bf16, without softcap (causal or not, varlen or not,
paged KV of any page size or none, split KV or not, GQA packed or not: one container each for plain, packgqa, paged,
split, paged+split), the split-KV combine kernels and the varlen scheduler's kernels.  Dropped are softcap, fp16, fp8,
other head dims, V head dims that differ (MLA), and sm_80/86.

Needs c++filt (binutils), GNU tar and xz; no CUDA, no GPU.  About a minute of one core and 2.5 GB of memory.
"""

import argparse
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

MEMBER = "sgl_kernel/flash_ops.abi3.so"
CONTAINER = struct.Struct("<IHHQ")  # magic, version, header size, size of the entries
ENTRY = struct.Struct("<HHIQ")  # kind, version, header size, payload size
MAGIC, CUBIN, COMPRESSED = 0xBA55ED50, 2, 0x2000 | 0x8000  # LZ4 | zstd
ARCH_AT, FLAGS_AT = 0x1C, 0x28  # u32, u64 in the entry header
ARCH_KEPT, ARCH_STUB = 90, 80

# CollectiveMainloopFwdSm90<Stages, Cluster, Tile<M, N, K>, HeadDimV, Element, float, Sm90, bools..., ElementS, ...>
MAINLOOP = re.compile(
    r"CollectiveMainloopFwdSm90<\d+, cute::tuple<[^>]*>[^>]*>[^>]*> >, "
    r"cute::tuple<cute::C<(?P<m>\d+)>, cute::C<(?P<n>\d+)>, cute::C<(?P<k>\d+)> >, (?P<dv>\d+), "
    r"cutlass::(?P<dtype>\w+), float, cutlass::arch::Sm90, (?P<bools>(?:(?:true|false), )+)"
)
BOOLS = ("causal", "local", "softcap", "varlen", "paged", "appendkv", "qv", "onlyqv", "rs", "overlap", "packgqa")
BOOLS += ("split",)


def section(data, name):
    """(offset, size) of an ELF64 little-endian section in the file."""
    table = struct.unpack_from("<Q", data, 0x28)[0]
    size, count, strings = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count)]
    base = headers[strings][4]
    for head in headers:
        start = base + head[0]
        if data[start : data.index(0, start)] == name:
            return head[4], head[5]
    raise SystemExit(f"no section {name.decode()}")


def containers(data, start, size):
    """Yield (offset, header size, end, entries) per fat binary; an entry is (offset, header size, payload
    size, kind, architecture, flags)."""
    at, stop = start, start + size
    while at + CONTAINER.size <= stop:
        magic, _, head, length = CONTAINER.unpack_from(data, at)
        if magic != MAGIC:
            if any(data[at : at + 8]):
                raise SystemExit(f"neither a fat binary nor padding at {at:#x}")
            at += 8
            continue
        end, entry, entries = at + head + length, at + head, []
        while entry < end:
            kind, _, entry_head, payload = ENTRY.unpack_from(data, entry)
            arch = struct.unpack_from("<I", data, entry + ARCH_AT)[0]
            flags = struct.unpack_from("<Q", data, entry + FLAGS_AT)[0]
            entries.append((entry, entry_head, payload, kind, arch, flags))
            entry += entry_head + payload
        if entry != end:
            raise SystemExit(f"entries overrun the fat binary at {at:#x}")
        yield at, head, end, entries
        at = end


def kernel_names(cubin):
    """Mangled names of the kernels in a cubin (one .text.NAME section each)."""
    table = struct.unpack_from("<Q", cubin, 0x28)[0]
    size, count, strings = struct.unpack_from("<HHH", cubin, 0x3A)
    base = struct.unpack_from("<Q", cubin, table + strings * size + 0x18)[0]
    names = []
    for i in range(count):
        start = base + struct.unpack_from("<I", cubin, table + i * size)[0]
        name = cubin[start : cubin.index(b"\0", start)]
        if name.startswith(b".text."):
            names.append(name[6:].decode())
    return names


def demangle(names):
    out = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return out.split("\n")[: len(names)]


def describe(names):
    """What it holds: ("combine",), ("scheduler",) or ("fwd", head dim, V head dim, dtype, variant); else None."""
    kinds = set()
    for name in demangle(names):
        match = MAINLOOP.search(name)
        if match:
            on = dict(zip(BOOLS, (b == "true" for b in match["bools"].split(", ")), strict=False))
            flags = [f for f in ("paged", "split", "softcap") if on[f]]
            if on["packgqa"] and not on["paged"] and not on["split"]:  # always on with these two
                flags.append("packgqa")
            kinds.add(("fwd", int(match["k"]), int(match["dv"]), match["dtype"], "+".join(flags) or "plain"))
        elif "flash::FlashAttnFwdCombine<" in name:
            kinds.add(("combine",))
        elif "flash::prepare_varlen_num_blocks_kernel<" in name:
            kinds.add(("scheduler",))
        elif "::EmptyKernel<void>" not in name:
            kinds.add(None)
    return kinds.pop() if len(kinds) == 1 else None


def trim(data, head_dims):
    """Trim data (a bytearray) in place; return what is kept as a list of (what, payload size, number of kernels)."""
    variants = ("plain", "packgqa", "paged", "split", "paged+split")
    wanted = {("combine",), ("scheduler",)} | {("fwd", d, d, "bfloat16_t", v) for d in head_dims for v in variants}
    kept, unread, dropped = [], 0, 0
    found = list(containers(data, *section(data, b".nv_fatbin")))
    plain = [e for c in found for e in c[3] if e[3] == CUBIN and e[4] == ARCH_STUB and not e[5] & COMPRESSED]
    offset, entry_head, payload = min(plain, key=lambda e: e[2])[:3]
    stub = data[offset : offset + entry_head + payload]
    for at, head, end, entries in found:
        main = [e for e in entries if e[3] == CUBIN and e[4] == ARCH_KEPT]
        keep = False
        if len(main) == 1 and main[0][5] & COMPRESSED:
            unread += 1  # only the largest files, of several head dims, are compressed; kept is checked below
        elif len(main) == 1:
            offset, entry_head, payload = main[0][:3]
            names = kernel_names(data[offset + entry_head : offset + entry_head + payload])
            what = describe(names)
            keep = what in wanted
        elif main:
            raise SystemExit(f"{len(main)} sm_{ARCH_KEPT} entries in the fat binary at {at:#x}")
        if keep:
            body = data[offset : offset + entry_head + payload]
            kept.append((what, payload, len(names)))
        else:
            dropped += 1
            body = stub
        if len(body) > end - at - head:
            raise SystemExit(f"no room for {len(body)} B in the fat binary at {at:#x}")
        struct.pack_into("<Q", data, at + 8, len(body))
        data[at + head : end] = body + bytes(end - at - head - len(body))
    if sorted(k[0] for k in kept) != sorted(wanted):
        raise SystemExit(f"kept {sorted(k[0] for k in kept)}, wanted {sorted(wanted)}")
    print(f"{len(kept)} fat binaries kept, {dropped} emptied ({unread} of them compressed, not read)", file=sys.stderr)
    return kept


def write_sparse(data, path, block=1 << 16):
    with open(path, "wb") as out:
        for at in range(0, len(data), block):
            piece = data[at : at + block]
            if any(piece):
                out.seek(at)
                out.write(piece)
        out.truncate(len(data))
    os.chmod(path, 0o755)


def pack(root, out):
    """root/sgl_kernel/... -> out, holes left out (GNU sparse tar), the same bytes for the same input."""
    with open(out, "wb") as file:
        same = ["--format=gnu", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]
        tar = subprocess.Popen(["tar", "--create", "--sparse", *same, "-C", root, MEMBER], stdout=subprocess.PIPE)
        xz = ["xz", "--compress", "--stdout", "--threads=1", "--x86", "--lzma2=preset=9e,dict=128MiB"]
        subprocess.run(xz, stdin=tar.stdout, stdout=file, check=True)
        if tar.wait():
            raise SystemExit("tar failed")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("wheel")
    parser.add_argument("out")
    parser.add_argument("--head-dims", default="128,64", help="default: 128,64")
    parser.add_argument("--keep-so", help="also leave the trimmed library at this path (sparse)")
    args = parser.parse_args()
    with zipfile.ZipFile(args.wheel) as wheel:
        data = bytearray(wheel.read(MEMBER))
    kept = trim(data, {int(d) for d in args.head_dims.split(",")})
    for what, payload, count in kept:
        print(f"  {' '.join(map(str, what)):40s} {count:4d} kernels {payload:9,d} B")
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.abspath(args.out))) as root:
        path = os.path.join(root, MEMBER)
        os.makedirs(os.path.dirname(path))
        write_sparse(data, path)
        pack(root, args.out)
        if args.keep_so:
            shutil.move(path, args.keep_so)
    print(f"{args.out}: {os.path.getsize(args.out):,} B ({len(data):,} B of library)")


if __name__ == "__main__":
    main()
