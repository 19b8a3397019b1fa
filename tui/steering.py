"""The router's advice and what it does to the next request: once, always, or not; kept over restarts.

Decisions of every turn are followed as they stream. Knows no widget.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import msgspec

from geomcli import preferences
from geomcli.preferences import Preferences
from geomcli.recommendation import WINDOW, Advice, Change, Decision, DecisionLog, Recommendation, Settled, recommend
from geomcli.schema import CAPTURE_MODES, Record
from geomcli.tui.ask import Ask
from geomcli.tui.session import Changed, Place, Session
from geomcli.tui.turn import Turn

Scope = Literal["", "next_run", "always"]
WORDS: dict[str, str] = {"next_run": "for one run", "always": "for every run"}


class Plan(NamedTuple):
    """What the next request is asked with. `advice`: the router's part of it, None without; `scope`: for how long."""

    ask: Ask
    advice: Advice | None
    scope: Scope

    def described(self) -> str:
        """One short phrase, like "temp 0.6  top_p 0.95  advised for one run"."""
        return self.ask.described() + (f"  advised {WORDS[self.scope]}" if self.advice is not None else "")


class Applied(msgspec.Struct, frozen=True):
    """What the router had changed in the request of a turn, as its header tells."""

    scope: str
    changes: tuple[Change, ...] = ()


class TurnLog(DecisionLog):
    """The decisions of a turn, up to what is shown of it."""

    def __init__(self, turn: Turn, modes: Sequence[str]) -> None:
        super().__init__(turn.trace.header.get("capture") or {}, modes=modes)
        self._turn, self._seen = turn, 0
        self._indices: list[int] = []

    def catch_up(self) -> None:
        """Take the steps that became visible."""
        tokens = self._turn.tokens
        while self._seen < len(tokens):
            token = tokens[self._seen]
            # The newest token's step may still be on its way.
            if not token.step and token.index == len(tokens) - 1 and not self._turn.finished:
                return
            self._seen += 1
            if token.step:
                before = len(self.settled)
                self.add(token.step, self._turn.times_ms.get(token.index))
                self._indices += [token.index] * (len(self.settled) - before)

    def at(self, token: int) -> Settled | None:
        """The settled zone after a token; None before the first with numbers."""
        number = bisect_right(self._indices, token)
        return self.settled[number - 1] if number else None

    def last_steps(self, token: int, count: int) -> list[Settled]:
        """The settled zones of at most `count` steps with numbers up to a token."""
        number = bisect_right(self._indices, token)
        return self.settled[max(0, number - count) : number]


class Steering:
    """Advice for a session, and the preferences that say whether it is applied.

    `modes`: what the server lets out now. `notify(text, severity)` is told when preferences cannot be kept.
    """

    def __init__(
        self,
        session: Session,
        *,
        modes: Callable[[], Sequence[str]] = lambda: CAPTURE_MODES,
        notify: Callable[[str, str], None] = lambda _text, _severity: None,
    ) -> None:
        self.session, self._modes, self._notify = session, modes, notify
        self.preferences: Preferences = preferences.load()
        self._logs: WeakKeyDictionary[Turn, TurnLog] = WeakKeyDictionary()

    def log_of(self, turn: Turn) -> TurnLog:
        """The decisions of a turn up to now."""
        log = self._logs.get(turn)
        if log is None:
            log = TurnLog(turn, self._modes())
            if turn.trace.header:
                self._logs[turn] = log
        log.catch_up()
        return log

    def decisions(self, turn: Turn) -> list[Decision]:
        return self.log_of(turn).decisions

    def recommendation(self, place: Place | None) -> Recommendation | None:
        """What follows from the steps up to a token; None where there are no numbers yet."""
        if self.session.token_of(place) is None or place is None:
            return None
        turn = self.session.turns[place.turn]
        settled = self.log_of(turn).at(place.token)
        if settled is None:
            return None
        steps: list[Record] = []
        for token in reversed(turn.tokens[: settled.token_index + 1]):
            if token.captured:
                steps.append(token.step)
            if len(steps) == WINDOW:
                break
        return recommend(
            steps[::-1], modes=self._modes(), classified_by=turn.trace.header.get("ruleset"), settled=settled
        )

    def newest(self) -> Advice | None:
        """The advice after the newest token that has numbers."""
        for number in range(len(self.session.turns) - 1, -1, -1):
            tokens = self.session.turns[number].tokens
            if tokens and (found := self.recommendation(Place(number, len(tokens) - 1))) is not None:
                return found.advice
        return None

    def plan(self) -> Plan:
        """What the next request would be asked with."""
        advice, _ = self.preferences.take(self.newest() if self.preferences.always else None)
        if advice is None:
            return Plan(self.session.ask, None, "")
        advice = _within(advice, self._modes())
        scope: Scope = "next_run" if self.preferences.next_run is not None else "always"
        return Plan(self.session.ask.advised(advice), advice, scope)

    def take(self) -> Plan:
        """`plan` for a request that starts now: advice for one run is used up by it."""
        plan = self.plan()
        self._keep(self.preferences.take(None)[1])
        return plan

    def apply_once(self, advice: Advice) -> None:
        """Apply advice to the next run."""
        self._keep(self.preferences.apply_to_next(advice))

    def apply_always(self, on: bool) -> None:
        """Apply the newest advice to every run, or no longer."""
        self._keep(self.preferences.apply_always(on).seen(self.newest()))

    def note_newest(self) -> None:
        """Keep the newest advice for the first run after a restart, where every run takes it."""
        if self.preferences.always:
            self._keep(self.preferences.seen(self.newest()))

    def clear(self) -> bool:
        """Apply nothing; False when nothing was to be applied."""
        was = self.preferences != Preferences()
        self._keep(Preferences())
        return was

    def _keep(self, wanted: Preferences) -> None:
        if wanted == self.preferences:
            return
        self.preferences = wanted
        try:
            preferences.save(wanted)
        except OSError as error:
            path = preferences.preferences_file()
            self._notify(f"{path} cannot be written: {error.strerror}. It holds until geom ends.", "warning")
        self.session.touch(Changed.STATE)


def router_field(plan: Plan, changes: Sequence[Change]) -> dict[str, Any]:
    """`router` of a trace's header: what the advice changed in its request."""
    return {"scope": plan.scope, "changes": [msgspec.to_builtins(change) for change in changes]}


def applied_to(header: Mapping[str, Any]) -> Applied | None:
    """What `router_field` wrote into a header; None where nothing was applied."""
    try:
        return msgspec.convert(header.get("router"), Applied | None)
    except msgspec.ValidationError:
        return None


def _within(advice: Advice, modes: Sequence[str]) -> Advice:
    """Advice that was kept for another server may ask for a mode that this one does not let out."""
    if not modes or advice.capture in modes:
        return advice
    return msgspec.structs.replace(advice, capture=modes[-1])
