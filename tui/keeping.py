"""Answers on their way into the store: written while they grow, tried again, and into a file when all else fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from geomcli import config, jsonl
from geomcli.errors import StoreError
from geomcli.schema import Record
from geomcli.tui.session import Changed, Session
from geomcli.tui.storage import Storage
from geomcli.tui.turn import Turn

_SAVE_SECONDS = 0.25
_LONGEST_SECONDS = 5.0  # between two tries
_MOST_FAILURES = 3  # to write an answer that has ended


class Keeper:
    """`owed`: answers that the store does not have to their end, whether or not they are still shown."""

    def __init__(self, session: Session, storage: Storage, notify: Callable[[str, str], None]) -> None:
        self.session, self.storage = session, storage
        self.owed: list[Turn] = []
        self._notify = notify
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._saving = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """An answer is being written, or tried again."""
        return bool(self._writing)

    def begin(self, turn: Turn, records: list[Record]) -> None:
        """Write this answer from now on; `records`: what there is of it, its header first."""
        self.owed.append(turn)
        self.take(turn, records)
        self._start(turn)

    def take(self, turn: Turn, records: list[Record]) -> None:
        """More of an answer that was begun."""
        self.storage.hold(turn.id, records)

    async def save(self) -> int:
        """Write the finished traces that the store does not have, shown or not; how many.

        StoreError of the last that could not be written, when all were tried.
        """
        shown = [turn for turn in self.session.turns if turn.finished and not turn.saved]
        self.owed += [turn for turn in shown if turn not in self.owed]
        async with self._saving:
            turns, failure = [turn for turn in self.owed if turn.finished], None
            for turn in turns:
                try:
                    await self._add(turn)
                except StoreError as error:
                    failure = error
            if failure is not None:
                raise failure
            return len(turns)

    async def close(self) -> str:
        """Write what is owed and close the store; a sentence about what could not be written, and where it is."""
        # First into a file: who is tired of waiting for a store ends the process.
        path, why = self._rescue() if self.owed else (None, "")
        for task in self._writing.values():
            task.cancel()
        if self._writing:
            await asyncio.wait(self._writing.values())
        failure = ""
        if self.owed:
            await self.storage.hurry()
        for turn in list(self.owed):
            try:
                await self._add(turn)
            except StoreError as error:
                failure = error.message
        await self.storage.close()
        if path is not None and not self.owed:
            path.unlink(missing_ok=True)
            return ""
        if path is None and not why:
            return ""
        return f"{failure or 'An answer had not ended yet.'} {why}"

    async def _add(self, turn: Turn) -> None:
        await self.storage.add(list(turn.trace.records()))
        if turn.finished:
            self._kept(turn)

    def _kept(self, turn: Turn) -> None:
        turn.saved = True
        if turn in self.owed:
            self.owed.remove(turn)
        self.session.touch(Changed.STATE)

    def _start(self, turn: Turn) -> None:
        task = asyncio.create_task(self._write(turn))
        self._writing[turn.id] = task
        task.add_done_callback(lambda _task: self._writing.pop(turn.id, None))

    async def _write(self, turn: Turn) -> None:
        """Four times a second, to the end. What cannot be written is tried again, after the end a few times.

        Answers that were given up are tried again as soon as another could be written.
        """
        failed = failed_after_end = 0
        while True:
            ended = turn.finished
            try:
                whole = await self.storage.write(turn.id)
            except StoreError as error:
                failed, failed_after_end = failed + 1, failed_after_end + ended
                if failed == 1:
                    why = error.message
                    self._notify(f"{why} The answer stays here: e writes it to a file, ctrl+s tries again.", "error")
                if failed_after_end >= _MOST_FAILURES:
                    return
            else:
                others = [one for one in self.owed if one is not turn and one.id not in self._writing]
                if failed:
                    missing = (
                        f"{len(others)} earlier answers are tried again." if others else "nothing is missing in it."
                    )
                    self._notify(f"The store can be written again; {missing}", "information")
                failed = 0
                if whole:
                    self._kept(turn)
                for one in others:
                    self._start(one)
                if whole:
                    return
            await asyncio.sleep(min(_LONGEST_SECONDS, _SAVE_SECONDS * (1 + 3 * failed)))

    def _rescue(self) -> tuple[Path | None, str]:
        """Write what is owed to a file: its path, and a sentence that says where it is, or that it failed."""
        path = config.state_dir() / f"{self.owed[-1].id}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(jsonl.dump(turn.trace.records()) for turn in self.owed), encoding="utf-8")
        except OSError as error:
            return None, f"{path} could not be written either: {error.strerror}."
        except (ValueError, TypeError, OverflowError) as error:
            return None, f"{path} could not be written either: {error}."
        return path, f"What it lacks is in {path}; geom tui {path} opens it."
