"""A folder of collected answers: what was asked of which server, the items, one line an answer, one npz of arrays each.

An answer's arrays are there before its line is, so a command that was ended in the middle goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import msgspec
import numpy as np

from geomcli.errors import GeomError, UsageError
from geomcli.evaluation.items import Item
from geomcli.evaluation.recording import Recording

VERSION = 1
T = TypeVar("T")
_HEADER, _ITEMS, _ANSWERS, _ARRAYS = "collection.json", "items.jsonl", "answers.jsonl", "arrays"


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be the same for answers of one folder. logits: logit_stats or top_logprobs, where they come from."""

    version: int = VERSION
    model: str
    layers: tuple[int, ...]
    heads: int
    mode: str
    head_stats: bool
    logits: str
    temperatures: tuple[float, ...]
    max_tokens: int
    seed: int
    items: str
    plugin: str = ""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """tokens: as in the entries; None where the server has no text."""

    number: int
    item: str
    temperature: float
    text: str
    tokens: tuple[str | None, ...]
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    seconds: float = 0.0


def digest(items: list[Item]) -> str:
    return hashlib.sha256(msgspec.json.encode(items)).hexdigest()[:16]


class Folder:
    """`Folder.create` to collect into, `Folder.open` to read."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header = path, header

    @classmethod
    def create(cls, path: Path, header: Header, items: list[Item]) -> Folder:
        """A new folder, or one that was begun with the same header; UsageError names what differs."""
        file = path / _HEADER
        if file.exists():
            begun = cls.open(path).header
            for field in msgspec.structs.fields(Header):
                before, now = getattr(begun, field.name), getattr(header, field.name)
                if before != now and field.name != "plugin":
                    raise UsageError(
                        f"{path} was begun with {field.name} {_shown(before)}, and this is {_shown(now)}.",
                        "the options it was begun with, or another --out",
                    )
            return cls(path, begun)
        (path / _ARRAYS).mkdir(parents=True, exist_ok=True)
        _write(path / _ITEMS, b"".join(msgspec.json.encode(item) + b"\n" for item in items))
        _write(file, msgspec.json.format(msgspec.json.encode(header)) + b"\n")
        return cls(path, header)

    @classmethod
    def open(cls, path: Path) -> Folder:
        try:
            content = (path / _HEADER).read_bytes()
        except FileNotFoundError:
            raise UsageError(f"{path} holds no collected answers.", f"geom eval detect collect --out {path}") from None
        header = _decoded(content, Header, path / _HEADER)
        if header.version != VERSION:
            raise GeomError(f"{path} has format {header.version}, and this geom reads {VERSION}.")
        return cls(path, header)

    def items(self) -> dict[str, Item]:
        file = self.path / _ITEMS
        try:
            lines = file.read_bytes().splitlines()
        except OSError as error:
            raise GeomError(f"{file} cannot be read: {error}.", "collect again into another folder") from None
        found = [_decoded(line, Item, file) for line in lines]
        return {item.id: item for item in found}

    def answers(self) -> list[Answer]:
        """Those that are whole: a last line that broke off, or is being written, is left out."""
        return [answer for _, answer in self._numbered()]

    def _numbered(self) -> Iterator[tuple[int, Answer]]:
        """Answers with the number of their line."""
        file = self.path / _ANSWERS
        if file.exists():
            for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
                if line:
                    try:
                        yield number, msgspec.json.decode(line, type=Answer)
                    except msgspec.MsgspecError as error:
                        raise _bad_line(file, number, f"cannot be read: {error}") from None

    def add(self, answer: Answer, recording: Recording) -> None:
        target = self._file(answer.number)
        waiting = target.with_name(f".{target.name}")
        with waiting.open("wb") as stream:
            np.savez(stream, allow_pickle=False, **recording.arrays())
        waiting.replace(target)
        with (self.path / _ANSWERS).open("a+b") as lines:
            _cut_broken_line(lines)
            lines.write(msgspec.json.encode(answer) + b"\n")

    def recording(self, answer: Answer) -> Recording:
        file = self._file(answer.number)
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return Recording(**{name: arrays[name] for name in arrays.files})
        except (OSError, ValueError, TypeError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise GeomError(
                f"{file} cannot be read: {error}.",
                f'delete the line with "number":{answer.number} in {self.path / _ANSWERS}, then collect again',
            ) from None

    def recordings(self) -> Iterator[tuple[Answer, Recording]]:
        """GeomError names an answer whose question or arrays are not there."""
        items = self.items()
        for number, answer in self._numbered():
            if answer.item not in items:
                raise _bad_line(self.path / _ANSWERS, number, f"there is no question {answer.item!r} in {_ITEMS}")
            yield answer, self.recording(answer)

    def digest(self) -> str:
        """Of the answers and of what they were asked."""
        made = hashlib.sha256()
        for name in (_HEADER, _ITEMS, _ANSWERS):
            file = self.path / name
            made.update(file.read_bytes() if file.exists() else b"")
        return made.hexdigest()[:16]

    def _file(self, number: int) -> Path:
        return self.path / _ARRAYS / f"{number:06d}.npz"


def _bad_line(file: Path, number: int, why: str) -> GeomError:
    return GeomError(f"{file}, line {number}: {why}.", "delete the line, then collect again with the same options")


def _cut_broken_line(lines: BinaryIO) -> None:
    """Off the end of a file: what a command that was ended in the middle had written of a line."""
    end = lines.seek(0, os.SEEK_END)
    if not end:
        return
    lines.seek(end - 1)
    if lines.read(1) != b"\n":
        lines.seek(0)
        lines.truncate(lines.read().rfind(b"\n") + 1)


def _decoded(content: bytes, kind: type[T], file: Path) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise GeomError(f"{file} cannot be read: {error}.", "collect again into another folder") from None


def _write(file: Path, content: bytes) -> None:
    waiting = file.with_name(f".{file.name}")
    waiting.write_bytes(content)
    waiting.replace(file)


def _shown(value: object) -> str:
    return "none" if value in ("", ()) else str(value)
