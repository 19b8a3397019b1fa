"""The discovery that /classify answers from: read at the start, looked at again every interval.

The one in use stays when a newer one is damaged.
"""

from __future__ import annotations

import threading
from pathlib import Path

from geomcli.discovery.artifacts import load
from geomcli.discovery.classification import Classifier
from geomcli.discovery.stamps import stamp_of
from geomcli.errors import GeomError


class Discoveries:
    """`classifier`: of the newest sound run, None before there is one; `error`: why the newest could not be taken."""

    def __init__(self, root: Path | None, interval: float = 300.0) -> None:
        self.root = root
        self.classifier: Classifier | None = None
        self.error = "" if root is not None else "no --discovery-dir was given."
        self.loads = 0
        self._stamp: object = None  # of the run in use
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._interval = interval
        if root is None:
            return
        self.reload()
        self._thread = threading.Thread(target=self._run, name="discoveries", daemon=True)
        self._thread.start()

    def reload(self) -> bool:
        """Take the newest run if it is another one; whether it was taken."""
        if self.root is None:
            return False
        with self._lock:
            try:
                stamp = stamp_of(self.root)
                if self.classifier is not None and self._stamp == stamp:
                    self.error = ""
                    return False
                self.classifier = Classifier(load(self.root))
                self._stamp = stamp
            except GeomError as error:
                self.error = str(error)
                return False
            self.error = ""
            self.loads += 1
            return True

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._interval):
            try:
                self.reload()
            except Exception as error:  # a later run is looked at all the same
                self.error = f"{type(error).__name__}: {error}"
