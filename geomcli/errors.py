"""What can go wrong, with the exit code that a script sees and the command that mends it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    OK = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3  # server not there, not ready, or lost: worth a retry
    VERDICT = 4  # the work was done, and its result is below what was asked for
    INTERRUPTED = 130


class GeomError(Exception):
    """One sentence for a person, optionally the command that mends it."""

    exit_code = ExitCode.FAILED

    def __init__(self, message: str, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __reduce__(self) -> tuple[type[GeomError], tuple[str, str | None]]:
        return type(self), (self.message, self.mend)  # whole from one process to another

    def __str__(self) -> str:
        return self.message if self.mend is None else f"{self.message} Try: {self.mend}"


class UsageError(GeomError):
    """A wrong flag, a wrong value, a configuration that cannot work."""

    exit_code = ExitCode.USAGE


class ServerUnreachable(GeomError):
    """No server, a server that is not ready, or one that went away in mid-answer."""

    exit_code = ExitCode.UNREACHABLE


class RequestRefused(GeomError):
    """The server answered 4xx: the request itself is wrong."""

    exit_code = ExitCode.USAGE


class ModelError(GeomError):
    """A model that cannot be fetched, converted or trusted."""


class StoreError(GeomError):
    """The trace store cannot be opened, read or written."""


class StoreChanged(StoreError):
    """A store that was read as it lay there, and was written meanwhile: it has to be opened anew."""


class TraceError(GeomError):
    """A file that is no trace, or two traces that cannot be compared."""
