"""The test part is looked at with one configuration: the first `--final` writes it down, any other is refused.

Labels and features are in it by their hash, so that code that makes others of the same answers is another one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.errors import GeomError, UsageError

FILE = "final.lock.json"


class Lock(msgspec.Struct, frozen=True, kw_only=True):
    hash: str
    configuration: dict[str, Any]
    created: str


def digest(configuration: dict[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(configuration, order="sorted")).hexdigest()


def of_texts(*texts: Iterable[str]) -> str:
    """A hash of lists of texts, in their order."""
    return hashlib.sha256(msgspec.json.encode([list(some) for some in texts])).hexdigest()[:16]


def of_arrays(arrays: Mapping[str, NDArray[Any]]) -> str:
    """A hash of named arrays; blind to the last digits, in which machines differ."""
    made = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        rounded = np.round(array.astype(np.float32), 5) + np.float32(0)  # -0 is 0
        made.update(msgspec.json.encode([name, array.shape]))
        made.update(np.ascontiguousarray(rounded).tobytes())
    return made.hexdigest()[:16]


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
            f"the test part of {folder} was looked at on {found.created}, and what differs since then is: "
            f"{', '.join(names) or 'the form of the lock'}.",
            "the same options, labels and geom as then, or new answers in another folder",
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
