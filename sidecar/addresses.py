"""Where ZMQ binds: checked first, since it takes a port modulo 65,536 and a file of that name away."""

from __future__ import annotations

import re
import socket
import stat
from pathlib import Path

_PORT = re.compile(r"tcp://.+:(\*|\d{1,5})")
_MOST_PORT = 65_535


def problem_of(url: str) -> str:
    """Why nobody should bind there, "" where one may: ZMQ says the rest."""
    if url.startswith("ipc://"):
        return _problem_of_file(url.removeprefix("ipc://"))
    if not url.startswith("tcp://"):
        return "it is neither tcp:// nor ipc://"
    found = _PORT.fullmatch(url)
    if found is None or (found[1] != "*" and int(found[1]) > _MOST_PORT):
        return f"it ends in no port, which is * or 0..{_MOST_PORT}"
    return ""


def _problem_of_file(name: str) -> str:
    if name in ("", "*"):
        return "it names no file"
    if name.startswith("@"):  # Linux's abstract namespace
        return ""
    path = Path(name)
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    if not stat.S_ISSOCK(mode):
        return f"{path} is there already and no socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.setblocking(False)
        try:
            other.connect(name)
        except BlockingIOError:  # it has not come round to those who wait
            pass
        except OSError:  # what a process that was killed has left
            return ""
    return "somebody listens there"
