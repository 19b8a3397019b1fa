"""A real terminal: `geom` in a tmux session of its own, keys sent and the screen read as text."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.conftest import GEOM


class Terminal:
    """`socket`: of the tmux server, which has this one session; what is on screen is text without styles."""

    def __init__(self, socket: Path) -> None:
        self._tmux_command = ["tmux", "-S", str(socket), "-f", "/dev/null"]
        self.exit_code = socket.with_name("exit-code")

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux_command, *arguments], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"tmux {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def press(self, *keys: str) -> None:
        """Keys as tmux names them: `Escape`, `C-q`, `p`."""
        for key in keys:
            self.tmux("send-keys", "-t", "geom", key)
            # An escape that is followed at once by a letter is one key to a terminal.
            time.sleep(0.3 if key == "Escape" else 0.03)

    def write(self, text: str) -> None:
        self.tmux("send-keys", "-t", "geom", "-l", text)

    def resize(self, columns: int, rows: int) -> None:
        self.tmux("resize-window", "-t", "geom", "-x", str(columns), "-y", str(rows))

    def screen(self) -> str:
        return self.tmux("capture-pane", "-p", "-t", "geom")

    def wait(self, *texts: str, seconds: float = 20) -> str:
        """The screen once it shows every one of these texts; AssertionError with the screen when it never does."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            screen = self.screen()
            if all(text in screen for text in texts):
                return screen
            time.sleep(0.1)
        raise AssertionError(f"{texts} did not appear within {seconds} s:\n{self.screen()}")

    def processes(self) -> set[int]:
        """What runs in the terminal: the program and all that it started."""
        root = int(self.tmux("display-message", "-p", "-t", "geom", "#{pane_pid}"))
        listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        parents = {int(pid): int(parent) for pid, parent in (line.split() for line in listed.splitlines())}
        found = {root}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def ended(self, seconds: float = 40) -> int:
        """Waits for the end of the program; its exit code."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.exit_code.exists() and (code := self.exit_code.read_text().strip()):
                return int(code)
            time.sleep(0.1)
        raise AssertionError(f"it did not end within {seconds} s:\n{self.screen()}")


@contextlib.contextmanager
def terminal(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str], *, columns: int = 120, rows: int = 36
) -> Iterator[Terminal]:
    """`geom ARGUMENTS` in a terminal of this size; ended with its terminal when the block ends."""
    made = Terminal(folder / "tmux")
    # What tmux itself would hand on is the environment of whoever started its server: this test.
    command = shlex.join(["env", "-u", "TMUX", str(GEOM), *arguments])
    # tmux sometimes misses with which code its program ended: the shell writes it down.
    command = f"{command}; echo $? > {shlex.quote(str(made.exit_code))}"
    # The session has to exist until its screen has been read.
    start = [
        *made._tmux_command, "set-option", "-g", "remain-on-exit", "on", ";", "set-option", "-g", "default-terminal",
        "tmux-256color", ";", "new-session", "-d", "-s", "geom", "-x", str(columns), "-y", str(rows), command,
    ]  # fmt: skip
    subprocess.run(
        [*made._tmux_command, "start-server", ";", *start[len(made._tmux_command) :]],
        env={**environment, "LC_ALL": "C.UTF-8"}, cwd=folder, check=True, timeout=30,
    )  # fmt: skip
    server = int(made.tmux("display-message", "-p", "#{pid}"))
    try:
        yield made
    finally:
        subprocess.run([*made._tmux_command, "kill-server"], capture_output=True, timeout=30)
        deadline = time.monotonic() + 5
        while alive({server}) and time.monotonic() < deadline:
            time.sleep(0.05)
        if alive({server}):
            os.kill(server, signal.SIGKILL)


def alive(pids: set[int]) -> set[int]:
    """Those of these processes that still run; one that has ended and was not waited for does not."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found
