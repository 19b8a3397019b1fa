"""geom: the geometric router for SGLang.

The library half: numpy and the standard library, nothing heavy. Names are loaded on first use so that `geom --help`
stays quick.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "Client": "geomcli.client",
    "Compass": "geomcli.compass",
    "Engine": "geomcli.engine",
    "GeomError": "geomcli.errors",
    "Store": "geomcli.store",
    "Trace": "geomcli.trace",
    "classify": "geomcli.zones",
    "fingerprint_from_probabilities": "geomcli.fingerprint",
}
__all__ = ["__version__", *_EXPORTS]  # noqa: PLE0604  (the names resolve through __getattr__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("geomcli")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'geomcli' has no attribute {name!r}")
