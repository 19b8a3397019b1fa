"""How long `geom tui --demo` takes from the start of its process to the first screen with text, in a real terminal.

    python benchmarks/tui_start.py [--runs 5] [-- ARGUMENTS OF GEOM]

Prints seconds of each run on the clock and of the processor. On a busy machine the second says more.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import select
import statistics
import struct
import sysconfig
import tempfile
import termios
import time
from pathlib import Path

GEOM = Path(sysconfig.get_path("scripts")) / "geom"
QUIT = b"\x11"
PAINTED = b"Chat"  # the title bar, which is drawn with everything else


def start(arguments: list[str], home: str) -> tuple[float, float]:
    """(seconds, seconds of processor time) of one start to its first screen."""
    environment = {**os.environ, "TERM": "xterm-256color", "GEOM_DB": f"{home}/traces.db"}
    began, screen = time.monotonic(), b""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(GEOM, [str(GEOM), *arguments], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    painted: float | None = None
    spent = 0.0
    with contextlib.suppress(OSError):  # the terminal is gone when the app has ended
        while time.monotonic() - began < 60:
            if select.select([terminal], [], [], 0.05)[0]:
                screen += os.read(terminal, 65536)
            if painted is None and PAINTED in screen:
                painted = time.monotonic() - began
                spent = processor_seconds(pid)
                os.write(terminal, QUIT)
    os.waitpid(pid, 0)
    if painted is None:
        raise SystemExit(f"nothing was painted:\n{screen.decode(errors='replace')}")
    return painted, spent


def processor_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("geom", nargs="*", default=["tui", "--demo"])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        start(options.geom, home)  # compiles what has not been compiled yet
        runs = [start(options.geom, home) for _ in range(options.runs)]
    for name, values in (("first paint", [r[0] for r in runs]), ("processor", [r[1] for r in runs])):
        shown = " ".join(f"{v:.2f}" for v in values)
        print(f"{name:<12} {shown}   median {statistics.median(values):.2f} s")


if __name__ == "__main__":
    main()
