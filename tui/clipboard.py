"""Copying: by a tool of this machine where there is one, by the terminal (OSC 52) over SSH and elsewhere."""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import Any

from textual.app import App

_TOOLS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("HOME", ("pbcopy",)),
)


async def copy(app: App[Any], text: str, *, what: str) -> None:
    """Copy and say so; how it may still have failed is said too, for a terminal never answers."""
    app.copy_to_clipboard(text)
    if await _by_tool(text):
        app.notify(f"{what} is in the clipboard.", timeout=2.5)
    else:
        app.notify(
            f"{what} was sent to the terminal's clipboard. If it is not there: shift+drag selects text.", timeout=4
        )


async def _by_tool(text: str) -> bool:
    if _is_remote():
        return False
    for variable, command in _TOOLS:
        if os.environ.get(variable) and shutil.which(command[0]):
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                await asyncio.wait_for(process.communicate(text.encode()), timeout=2)
            except TimeoutError:
                process.kill()
                return False
            return process.returncode == 0
    return False


def _is_remote() -> bool:
    """Whether the screen is elsewhere: the clipboard of this machine is then not the user's."""
    return any(os.environ.get(name) for name in ("SSH_CONNECTION", "SSH_TTY", "TEXTUAL_DRIVER"))
