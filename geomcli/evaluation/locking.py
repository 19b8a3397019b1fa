"""The test part is looked at with one configuration: the first `--final` writes it down, any other is refused."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import msgspec

from geomcli.errors import GeomError, UsageError

FILE = "final.lock.json"


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    hash: str
    configuration: dict[str, Any]
    created: str


def digest(configuration: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(configuration, order="sorted")).hexdigest()


def acquire(folder: Path, configuration: dict[str, Any]) -> Lock:
    """The folder's lock, written now or by an earlier run of the same configuration; UsageError names what differs."""
    file = folder / FILE
    made = Lock(hash=digest(configuration), configuration=configuration, created=time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    try:
        with file.open("xb") as stream:
            stream.write(msgspec.json.format(msgspec.json.encode(made)) + b"\n")
        return made
    except FileExistsError:
        found = read(folder)
    assert found is not None
    if found.hash != made.hash:
        names = sorted(
            name
            for name in {*found.configuration, *configuration}
            if found.configuration.get(name) != configuration.get(name)
        )
        raise UsageError(
            f"the test part of {folder} was looked at on {found.created} with another {', '.join(names) or 'setting'}.",
            "the same options again, or new answers in another folder",
        )
    return found


def read(folder: Path) -> Lock | None:
    try:
        content = (folder / FILE).read_bytes()
    except FileNotFoundError:
        return None
    try:
        lock = msgspec.json.decode(content, type=Lock)
    except msgspec.MsgspecError as error:
        raise GeomError(f"{folder / FILE} cannot be read: {error}.") from None
    if lock.hash != digest(lock.configuration):
        raise GeomError(f"{folder / FILE} was changed: its hash is not that of its configuration.")
    return lock
