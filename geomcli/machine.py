"""What this machine has: a GPU that can be used, free memory, a free port; asks the driver and the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import re
import socket
from errno import EADDRINUSE
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def detect_device() -> str:
    """`cuda` when the NVIDIA driver counts a device and the installed packages can use it, else `cpu`."""
    return "cuda" if _cuda_packages() and _cuda_devices() > 0 else "cpu"


def _cuda_packages() -> bool:
    """Whether SGLang's CUDA kernels are here; the CPU engine of the Makefile has a shim in their place."""
    for name in ("sglang-kernel", "sgl-kernel"):
        with contextlib.suppress(PackageNotFoundError):
            return bool(version(name)) and "+cpu" not in version("torch")
    return False


def _cuda_devices() -> int:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def available_memory() -> int | None:
    """Bytes that a new process may use: the machine's, or what is left of the container's limit if that is less."""
    found = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    group = Path("/sys/fs/cgroup")
    # "max" where there is no limit: then int() says so.
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        found.append(limit - used + (int(cached[1]) if cached else 0))
    return min(found, default=None)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listening_port(beside: int) -> int | None:
    """A port for a process that listens on it only later; None where ephemeral ports begin too low.

    The kernel gives no outgoing connection a port below its ephemeral range, so one that is free now stays free. The
    same one for the same `beside`, if it is free.
    """
    # A prime: ports that people choose together differ by round numbers.
    first, count = 10_000, 9_973
    with contextlib.suppress(OSError, ValueError, IndexError):
        lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        first = min(lowest - count, 20_000)
    if first < 1024:
        return None
    for port in (first + (beside + step) % count for step in range(100)):
        if port != beside and _is_free(port):
            return port
    return None


def _is_free(port: int) -> bool:
    for family, everywhere in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        try:
            with socket.socket(family) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((everywhere, port))
        except OSError as error:
            if error.errno == EADDRINUSE:
                return False
    return True
