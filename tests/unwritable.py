"""Folders and files that may only be read, also where the tests run as root."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_NOBODY = 65534


@contextlib.contextmanager
def reachable_folder() -> Iterator[Path]:
    """A folder that everybody can reach; pytest's own are for their owner."""
    made = Path(tempfile.mkdtemp(prefix="geom-"))
    try:
        yield made
    finally:
        made.chmod(0o755)
        shutil.rmtree(made)


@contextlib.contextmanager
def unwritable(*paths: Path) -> Iterator[None]:
    """Folders and files that may only be read. To root that is no hindrance, so root is somebody else meanwhile."""
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
