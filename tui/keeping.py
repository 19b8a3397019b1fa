"""Answers on their way into the store: written while they grow, tried again, and into a file when all else fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from geomcli import config, jsonl
from geomcli.errors import StoreError
from geomcli.schema import Record
from geomcli.tui.session import Changed, Session
from geomcli.tui.storage import Storage
from geomcli.tui.turn import Turn

_SAVE_SECONDS = 0.25
_MOST_FAILURES = 3  # to write an answer that has ended


class Keeper:
    """`owed`: answers that the store does not have to their end, whether or not they are still shown."""

    def __init__(self, session: Session, storage: Storage, notify: Callable[[str, str], None]) -> None:
        self.session, self.storage = session, storage
        self.owed: list[Turn] = []
        self._notify = notify
        self._writing: set[asyncio.Task[None]] = set()
        self._saving = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """An answer is being written, or tried again."""
        return bool(self._writing)

    def begin(self, turn: Turn, records: list[Record]) -> None:
        """Write this answer from now on; `records`: what there is of it, its header first."""
        self.owed.append(turn)
        self.take(turn, records)
        task = asyncio.create_task(self._write(turn))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def take(self, turn: Turn, records: list[Record]) -> None:
        """More of an answer that was begun."""
        self.storage.hold(turn.id, records)

    async def save(self) -> int:
        """Write the finished traces that the store does not have, shown or not; how many.

        StoreError at the first that cannot be written.
        """
        async with self._saving:
            turns = [turn for turn in self.session.turns if turn.finished and not turn.saved]
            turns += [turn for turn in self.owed if turn.finished and turn not in turns]
            for turn in turns:
                await self.storage.add(list(turn.trace.records()))
                self._kept(turn)
            return len(turns)

    async def close(self) -> str:
        """Write what is owed and close the store; a sentence about what could not be written, and where it is."""
        if self._writing:
            # They only wait for the next write; all that is owed is written below.
            for task in self._writing:
                task.cancel()
            await asyncio.wait(self._writing)
        try:
            await self.storage.close()
        except StoreError as error:
            return f"{error.message} {self._rescued()}"
        return ""

    def _kept(self, turn: Turn) -> None:
        turn.saved = True
        if turn in self.owed:
            self.owed.remove(turn)
        self.session.touch(Changed.STATE)

    async def _write(self, turn: Turn) -> None:
        """Four times a second, to its end. What cannot be written is tried again, behind the end a few times."""
        failures = 0
        while True:
            ended = turn.finished
            try:
                whole = await self.storage.write(turn.id)
            except StoreError as error:
                failures += 1
                if failures == 1:
                    why = error.message
                    self._notify(f"{why} The answer stays here: e writes it to a file, ctrl+s tries again.", "error")
                if ended and failures >= _MOST_FAILURES:
                    return
            else:
                if failures:
                    self._notify("The store can be written again; nothing is missing in it.", "information")
                failures = 0
                if whole:
                    self._kept(turn)
                    return
            await asyncio.sleep(_SAVE_SECONDS * (1 + 3 * failures))

    def _rescued(self) -> str:
        """Write what is owed to a file; a sentence that says where, or that it failed."""
        turns = self.owed
        path = config.state_dir() / f"{turns[-1].id if turns else 'unsaved'}.jsonl"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(jsonl.dump(turn.trace.records()) for turn in turns), encoding="utf-8")
        except OSError as error:
            return f"{path} could not be written either: {error.strerror}."
        return f"What it lacks is in {path}; geom tui {path} opens it."
