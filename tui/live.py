"""The server behind a session: found, watched, asked, lost and found again; and the engine that geom starts itself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from geomcli import config, preferences
from geomcli.decisions import first_halt
from geomcli.errors import GeomError, ServerUnreachable
from geomcli.recommendation import changes
from geomcli.request import attention_fields
from geomcli.schema import CAPTURE_MODES, Message, Record
from geomcli.trace import TraceBuilder
from geomcli.tui.ask import Ask
from geomcli.tui.keeping import Keeper
from geomcli.tui.session import Changed, Session
from geomcli.tui.steering import Steering, router_field
from geomcli.tui.storage import Storage
from geomcli.tui.turn import Turn

if TYPE_CHECKING:
    from geomcli.client import Client
    from geomcli.engine import Engine

_LONGEST_SECONDS = 0.01  # of work without a look at the keys
_PATIENT_SECONDS, _EAGER_SECONDS = 5.0, 1.0


class State(Enum):
    LOOKING = "looking"
    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    LOST = "lost"
    REFUSED = "refused"


class Status(NamedTuple):
    """How the HUD shows the connection; `colour` is a theme variable."""

    glyph: str
    text: str
    colour: str


class Live:
    """Drives a server for a session.

    `state`, `capabilities` (the server's document), `model`, `running` (an answer is being written), `detail` (why it
    is not ready), `steering` (what the router's advice does to requests). `notify(text, severity)` is told what the
    user has to know. Answers are kept in `storage` by `keeper` when `save` is on, whether they end well or not.
    """

    def __init__(
        self,
        session: Session,
        settings: config.Settings,
        storage: Storage,
        *,
        save: bool = True,
        notify: Callable[[str, str], None] = lambda _text, _severity: None,
    ) -> None:
        self.session, self.settings, self.save = session, settings, save
        self.keeper = Keeper(session, storage, notify)
        self.state = State.LOOKING
        self.capabilities: dict[str, Any] = {}
        self.model = ""
        self.running = False
        self.detail = ""
        self.lost = ""  # what could not be kept at the end, said when the terminal is the user's again
        self.on_rest: Callable[[], None] = lambda: None  # called when an answer has ended
        self._notify = notify
        self.steering = Steering(session, modes=lambda: self.modes, notify=notify)
        self._client: Client | None = None
        self._answering: asyncio.Task[Any] | None = None
        self._engine: Engine | None = None
        self._look = asyncio.Event()
        self._shown: tuple[object, ...] = ()

    @property
    def place(self) -> str:
        """The server's host and port."""
        return urlsplit(self.settings.base_url).netloc

    @property
    def modes(self) -> tuple[str, ...]:
        """The capture modes that the server lets out; all while that is not known."""
        return tuple(self.capabilities.get("modes") or CAPTURE_MODES)

    @property
    def status(self) -> Status:
        if self.session.player is not None:
            return Status("▶", f"playing {self.session.title}", "accent")
        if self.session.title and not self.running:
            return Status("▪", self.session.title, "muted")
        match self.state:
            case State.READY:
                return Status("●", f"{self.model} {self.place}", "success")
            case State.LOOKING:
                return Status("○", f"looking for a server at {self.place}", "muted")
            case State.STARTING:
                return Status("◐", self.detail, "warning")
            case State.LOST:
                return Status("×", f"connection to {self.place} lost, trying again", "error")
            case State.REFUSED:
                return Status("×", self.detail, "error")
            case State.ABSENT:
                return Status("○", f"no server at {self.place}", "warning")

    async def watch(self) -> None:
        """Look for the server for ever: often while it is not there, rarely while it is."""
        while True:
            if not self.running and self.state is not State.STARTING:
                await self._look_once()
            patient = self.state is State.READY
            self._look.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), _PATIENT_SECONDS if patient else _EAGER_SECONDS)

    async def _look_once(self) -> None:
        try:
            client = await self._opened()
            self.capabilities = await client.capabilities()
            self.model = await client.model()
        except ServerUnreachable as error:
            self.detail = error.message
            if not self.running and self.state is not State.STARTING:
                was_there = self.state in (State.READY, State.LOST)
                self._become(State.LOST if was_there else State.ABSENT)
        except GeomError as error:
            self.detail = str(error)
            self._become(State.REFUSED)
        else:
            if self.state is State.LOST:
                self._notify(f"Connected to {self.place} again.", "information")
            self._become(State.READY)

    async def ask(self, text: str) -> None:
        """Ask a question after what was said so far, until the answer ends, is stopped or breaks off.

        GeomError, and nothing changed, when it cannot be asked now.
        """
        if self.running:
            raise GeomError("an answer is being written.", "ctrl+x ends it")
        if self.session.reading:
            raise GeomError(f"{self.session.reading} is still being read.", "ctrl+n begins a new chat")
        if self.state is not State.READY:
            raise ServerUnreachable(f"there is no server at {self.place}.", "E starts the built-in engine")
        ask = self.session.ask
        own = {**ask.sampling, **self._fields(ask)}
        plan = self.steering.take()
        fields = own
        if plan.advice is not None:
            fields = preferences.applied({**plan.ask.sampling, **self._fields(plan.ask)}, plan.advice)
        router = None if plan.advice is None else router_field(plan, changes(own, plan.advice))
        if self.session.player is not None:
            self.session.player.finish()
        messages = self.session.conversation()
        if ask.system and not messages:
            messages.append({"role": "system", "content": ask.system})
        messages.append({"role": "user", "content": text})
        self.session.title = ""
        self._answering = asyncio.current_task()
        self.running = True
        try:
            await self._answer(messages, fields, router)
        finally:
            self.running, self._answering = False, None
            self.steering.note_newest()
            self.session.touch(Changed.STATE | Changed.TOKENS)
            self.on_rest()
            self._look.set()

    def _fields(self, ask: Ask) -> dict[str, Any]:
        """The fields of capture; ServerUnreachable when the server captures nothing."""
        return attention_fields(
            self.capabilities,
            capture=ask.capture,
            top_k=ask.top_k,
            layers=None if ask.layers is None else list(ask.layers),
            derotate=self.session.derotated and self._derotates(ask.capture),
            firewall=ask.firewall,
        )

    async def _answer(self, messages: list[Message], fields: dict[str, Any], router: dict[str, Any] | None) -> None:
        builder = TraceBuilder(messages, model=self.model, capture=fields)
        turn = self.session.begin(source=self.place)
        records = builder.start()
        if router is not None:
            records[0]["router"] = router
        self.session.feed(turn, records)
        if self.save:
            self.keeper.begin(turn, records)
        error: str | None = "broke off"
        try:
            client = await self._opened()
            async with contextlib.aclosing(client.chat(messages, model=self.model, fields=fields)) as chunks:
                since = time.monotonic()
                async for chunk in chunks:
                    records = builder.add(chunk)
                    turn.arrived(records)
                    self._take(turn, records)
                    if time.monotonic() - since > _LONGEST_SECONDS:
                        # What has arrived at once must not keep keys and screen waiting.
                        await asyncio.sleep(0)
                        since = time.monotonic()
            error = None
        except GeomError as failure:
            error = failure.message
            self._failed(failure)
        except asyncio.CancelledError:
            error = "interrupted"
        finally:
            self._take(turn, builder.finish(error))

    def _take(self, turn: Turn, records: list[Record]) -> None:
        self.session.feed(turn, records)
        if (halt := first_halt(record for record in records if record["record_type"] == "step")) is not None:
            place, found = halt
            score = "" if found.score is None else f", {found.detector} {found.score:.2f}"
            self._notify(
                f"The firewall halts at token {place + 1}{score}: {found.consequence}. {found.caveat.capitalize()}.",
                "warning",
            )
        if self.save:
            self.keeper.take(turn, records)

    def _failed(self, failure: GeomError) -> None:
        self._notify(str(failure), "error")
        if isinstance(failure, ServerUnreachable):
            self._become(State.LOST)

    def stop(self) -> bool:
        """End the answer that is being written, or a replay; what is there is kept. False when there is neither."""
        if self.session.player is not None:
            self.session.player.finish()
            return True
        if self._answering is None:
            return False
        self._answering.cancel()
        return True

    async def start_engine(self) -> None:
        """Start the default model with SGLang on this machine and use it; GeomError when that fails."""
        if self.state in (State.STARTING, State.READY):
            return
        from geomcli import engine, engine_plan, models

        self._starting("preparing the engine")
        try:
            if await asyncio.to_thread(models.problem, models.DEFAULT_MODEL) is not None:
                await asyncio.to_thread(models.pull, models.DEFAULT_MODEL, progress=self._pulling)
            model = await asyncio.to_thread(models.resolve, models.DEFAULT_MODEL)
            flags = ["--return-attention-tokens", "--attention-capture-layers", "auto"]
            port = urlsplit(self.settings.base_url).port if config.is_loopback(self.settings.base_url) else None
            plan = engine_plan.plan(model, flags=flags, port=port or config.DEFAULT_PORT)
            self._engine = engine.Engine(plan)
            # Here and not in a thread: the engine ends with the thread that started it.
            self._engine.start()
            await asyncio.to_thread(self._engine.wait, progress=lambda s: self._starting(f"engine starts … {s:.0f} s"))
        except GeomError as error:
            self.detail = error.message
            self._become(State.ABSENT)
            await self._end_engine()
            raise
        await self._forget_client()
        self.settings = msgspec.structs.replace(self.settings, base_url=plan.base_url)
        self._become(State.LOOKING)
        self._look.set()

    def _starting(self, text: str) -> None:
        self.detail = text
        self._become(State.STARTING)

    def _pulling(self, stage: str, done: int, total: int) -> None:
        self._starting(f"{stage} the model … {done / max(1, total):.0%}")

    async def close(self) -> None:
        """End the answer, write what is unsaved, close the connection, end an engine that was started here."""
        answering = self._answering
        self.stop()
        if answering is not None:
            await asyncio.wait({answering}, timeout=1)
        try:
            self.lost = await self.keeper.close()
        finally:
            await self._forget_client()
            await self._end_engine()

    async def _end_engine(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.stop)

    async def _forget_client(self) -> None:
        if self._client is not None:
            client, self._client = self._client, None
            await client.__aexit__()

    async def _opened(self) -> Client:
        if self._client is None:
            # A fifth of a second of imports, in which keys are answered already.
            await asyncio.to_thread(import_module, "geomcli.client")
            from geomcli.client import Client

            s = self.settings
            self._client = Client(s.base_url, api_key=s.api_key, attention_key=s.attention_key)
        return self._client

    def _derotates(self, capture: str | None) -> bool:
        return capture in (None, "raw") and bool((self.capabilities.get("features") or {}).get("derotation"))

    def _become(self, state: State) -> None:
        # The watch asks every second: what has not changed is not drawn, and the footer not made, again.
        features = tuple(sorted((self.capabilities.get("features") or {}).items()))
        shown = (state, self.detail, self.model, self.modes, features)
        self.state = state
        if shown != self._shown:
            self._shown = shown
            self.session.touch(Changed.STATE)
