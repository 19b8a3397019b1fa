"""Which store, and which of its traces: what the commands on stored traces share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from geomcli import config
from geomcli.store import Store

Db = Annotated[Path | None, typer.Option("--db", help="Trace store; GEOM_DB.", dir_okay=False)]


def store_at(db: Path | None, *, create: bool = False) -> Store:
    """The store that `--db`, GEOM_DB or geom.toml name. A command that only reads makes none."""
    return Store(config.store_path(db=None if db is None else str(db)), create=create)


def given(store: Store, names: Sequence[str]) -> list[str]:
    """Full ids of traces named by id, the start of one, `last`, or `-` for a list on stdin; each once, in their order.

    On stdin an id a line; blank lines are passed over. StoreError names the first that is not there.
    """
    wanted: list[str] = []
    for name in names:
        wanted += [line.strip() for line in sys.stdin if line.strip()] if name == "-" else [name]
    return list(dict.fromkeys(store.find(name) for name in wanted))
