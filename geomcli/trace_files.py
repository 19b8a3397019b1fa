"""Files of traces as lines: plain or compressed with Zstandard, or stdin; never read as a whole.

Knows nothing of what is in the lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from geomcli.errors import TraceError

LONGEST_LINE = 64 << 20  # bytes; a step with 64 links of each of 100 layers is about 1 MB
ZSTD_SUFFIX = ".zst"
_MAGIC = b"\x28\xb5\x2f\xfd"
_STDIN = "stdin"


def shown(name: str) -> str:
    """What messages call an input."""
    return _STDIN if name == "-" else name


@contextlib.contextmanager
def opened(name: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, or of stdin for `-`, decompressed where they begin as Zstandard does; OSError."""
    with contextlib.ExitStack() as stack:
        raw = sys.stdin.buffer if name == "-" else stack.enter_context(Path(name).open("rb"))
        buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(cast(io.RawIOBase, raw))
        if buffered.peek(len(_MAGIC))[: len(_MAGIC)] == _MAGIC:
            import zstandard

            reader = zstandard.ZstdDecompressor().stream_reader(buffered, read_across_frames=True, closefd=False)
            yield cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, reader)))
        else:
            yield buffered


def lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines with their breaks; TraceError for one longer than LONGEST_LINE, or where decompression fails."""
    number = 0
    try:
        while text := stream.readline(LONGEST_LINE + 1):
            number += 1
            if len(text) > LONGEST_LINE:
                raise TraceError(f"{name}, line {number} is longer than {LONGEST_LINE >> 20} MB: this is no trace.")
            yield text
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # not imported for files that are not compressed
            raise
        raise TraceError(f"{name} cannot be decompressed behind line {number}: {error}.") from None


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when all was written, and else leaves nothing behind; `.zst` compresses."""
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():  # a device or a pipe cannot be replaced
        with path.open("wb") as raw, _compressed(raw, path) as stream:
            yield stream
        return
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with os.fdopen(handle, "wb") as raw, _compressed(raw, path) as stream:
            yield stream
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp's files are the owner's alone
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _compressed(raw: BinaryIO, path: Path) -> Iterator[BinaryIO]:
    if path.suffix != ZSTD_SUFFIX:
        yield raw
        return
    import zstandard

    with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as stream:
        yield cast(BinaryIO, stream)
