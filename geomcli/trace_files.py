"""Files of traces as lines: plain or compressed with Zstandard, or stdin; never read as a whole.

Knows nothing of what is in the lines.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from geomcli.errors import TraceError

LONGEST_LINE = 64 << 20  # bytes; a step with 64 links of each of 100 layers is about 1 MB
ZSTD_SUFFIX = ".zst"
_MAGIC = b"\x28\xb5\x2f\xfd"
_FED = 1024  # bytes decompressed at a time: they make 32 MB at the most
_STDIN = "stdin"
_BOM = b"\xef\xbb\xbf"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{")
_WHOLE = "copy it again from where it was written"
_GZIP = b"\x1f\x8b"
_NPY = b"\x93NUMPY"


class Undecompressed(TraceError):
    """What is no compressed file, from some place on; the lines in front of that were given out."""


class EndsEarly(TraceError):
    """A compressed file that stops in the middle of what it holds; the lines in front of that were given out."""


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
            yield cast(IO[bytes], io.BufferedReader(_Decompressed(buffered, shown(name)), 1 << 17))
        else:
            yield buffered


class _Decompressed(io.RawIOBase):
    """What Zstandard compressed, frame by frame; the library's own reader takes a frame that was cut off for an end."""

    def __init__(self, raw: io.BufferedReader, name: str) -> None:
        import zstandard

        self._raw, self._name = raw, name
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._fed = False  # whether the frame has begun
        self._rest = b""  # compressed, behind the frame before
        self._made = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._made:
            some = self._rest or self._raw.read(_FED)
            if not some:
                if self._fed:
                    raise EndsEarly(f"the compressed file {self._name} ends early: it was cut off.", _WHOLE)
                return 0
            try:
                made = self._frame.decompress(some)
            except self._error as error:
                raise Undecompressed(str(error).removesuffix(".")) from None
            self._made, self._fed, self._rest = memoryview(made), True, b""
            if self._frame.eof:
                self._rest, self._fed = self._frame.unused_data, False
                self._frame = self._decompressor.decompressobj()
        count = min(len(buffer), len(self._made))
        buffer[:count] = self._made[:count]
        self._made = self._made[count:]
        return count


def lines(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines with their breaks, without the mark that some editors put in front of UTF-8.

    TraceError for a line longer than LONGEST_LINE, for what is no UTF-8 at all, and where decompression fails;
    EndsEarly behind the last whole line of a compressed file that was cut off.
    """
    number = 0
    try:
        while text := stream.readline(LONGEST_LINE + 1):
            number += 1
            if number == 1:
                _check_encoding(text, name)
                text = text.removeprefix(_BOM)
            if len(text) > LONGEST_LINE:
                raise TraceError(
                    f"{name}, line {number} is longer than {LONGEST_LINE >> 20} MB: this is no trace.",
                    "geom traces export last > trace.jsonl, which is one",
                )
            if text:
                yield text
    except Undecompressed as error:
        raise TraceError(f"{name} cannot be decompressed behind line {number}: {error}.", _WHOLE) from None


def is_arrays(begin: bytes) -> bool:
    """Whether a file is npz, which is a zip archive, or safetensors: the length of a JSON object and that object."""
    return begin[:4] == b"PK\x03\x04" or (begin[8:9] == b"{" and begin[:1] != b"{" and b"\0\0" in begin[:8])


def _check_encoding(text: bytes, name: str) -> None:
    if is_arrays(text):
        raise TraceError(
            f"{name} is npz or safetensors: a dump of attention has to be imported first.",
            f"geom traces import {'FILE' if name == _STDIN else shlex.quote(name)}, then with the id that it prints",
        )
    if text.startswith(_NPY):
        raise TraceError(
            f"{name} is one array of numpy and no trace.", "np.savez(…) as docs/traces.md, Hugging Face, says"
        )
    file = "FILE" if name == _STDIN else shlex.quote(name)
    if text.startswith(_UTF_16):
        raise TraceError(
            f"{name} is in UTF-16, and lines of JSON are in UTF-8.",
            f"iconv -f UTF-16 -t UTF-8 {file} > utf8.jsonl, then with that file",
        )
    if text.startswith(_GZIP):
        raise TraceError(
            f"{name} is compressed with gzip; files of traces are plain or compressed with Zstandard.",
            f"gunzip -c {file} > plain.jsonl, then with that file",
        )


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

    with zstandard.ZstdCompressor(write_checksum=True).stream_writer(raw, closefd=False) as stream:
        yield cast(BinaryIO, stream)
