"""The router's widgets: the zone now with its advice, the evidence, the next run, and the list of decisions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from rich.style import Style
from rich.text import Text

from geomcli.display import zone_label
from geomcli.recommendation import Decision, changes
from geomcli.tui.session import Changed, Place, Session
from geomcli.tui.steering import WORDS, Steering, applied_to
from geomcli.tui.turn import Token, Turn
from geomcli.tui.widgets import router_lines as parts
from geomcli.tui.widgets.learned_words import router_rows
from geomcli.tui.widgets.rows import Rows
from geomcli.tui.widgets.text import KeptText
from geomcli.zones import ZONES_V1

if TYPE_CHECKING:
    from geomcli.tui.app import GeomApp


class _RouterText(KeptText):
    """Lines about the token under the cursor."""

    WATCHES = Changed.TURNS | Changed.TOKENS | Changed.CURSOR | Changed.STATE

    @property
    def geom(self) -> GeomApp:
        return cast("GeomApp", self.app)

    @property
    def steering(self) -> Steering:
        return self.geom.live.steering

    @property
    def narrow(self) -> bool:
        return self.screen.has_class("-narrow")

    def heading(self, text: str) -> Text:
        return parts.said(text, self.paint.fore("primary", bold=True))


class RouterNow(_RouterText):
    """The settled zone, the last steps, and what is recommended with the reasons."""

    def lines(self) -> list[Text]:
        session, paint, width = self.session, self.paint, self.size.width
        token, turn, cursor = session.token, session.turn, session.cursor
        found = self.steering.recommendation(cursor)
        if token is None or turn is None or cursor is None:
            return self._nothing()
        count = len(turn.tokens)
        newest = token.index == count - 1 and turn is session.turns[-1]
        head = self.heading("NOW" if newest else "THEN")
        head.append(f"  #{token.index} of {count} tokens", paint.fore("muted"))
        if not newest:
            head.append(f"  {self.geom.key_of('token.last')} goes to the newest", paint.fore("muted"))
        if found is None:
            flags = ", ".join(token.step.get("flags") or ())
            why = f"its flags: {flags}" if flags else "nothing was captured"
            said = f"No step up to this one has numbers ({why}), so there is no zone and no advice."
            return [head, Text(""), *parts.wrapped(said, width, paint.fore("foreground"))]
        settled = found.settled
        zone = parts.zone_mark(settled.zone, paint, bold=True)
        zone.append(f"  confidence {parts.short(settled.confidence)}", paint.fore("foreground"))
        lasts = self.steering.log_of(turn).last_steps(token.index, width)
        strips = parts.strips(turn, lasts, paint, width)
        fields = turn.trace.header.get("capture") or {}
        if self.narrow:
            words = parts.change_words(changes(fields, found.advice)) or "as it was asked"
            advised = self.heading("ADVISED  ").append(words, paint.fore("accent", bold=True))
            return [head.append("  ").append_text(zone), parts.votes(settled, paint), *strips, advised]
        rows = [head, zone, parts.votes(settled, paint), Text(""), *strips, Text(""), self.heading("RECOMMENDED")]
        rows += parts.advice_rows(found, fields, paint)
        rows += [parts.said(f"{'cache':<13}{found.cache}", paint.fore("muted"))]
        rows += [parts.said(f"{'action':<13}{found.action}", paint.fore("muted"))]
        for reason in found.reasons:
            words = reason.replace(settled.zone, zone_label(settled.zone))
            rows += parts.wrapped(words, width, paint.fore("foreground"), bullet="· ")
        return rows + parts.wrapped(parts.CONVENTION, width, paint.fore("muted"), bullet="· ")

    def _nothing(self) -> list[Text]:
        app, paint = self.geom, self.paint
        said = "The zone of an answer while it is written, and what to ask with next."
        lines = parts.wrapped(said, self.size.width, paint.fore("foreground"))
        if not self.narrow:
            lines = [self.heading("ROUTER"), *lines, Text("")]
        for keys, what in (
            (f"{app.key_of('mode.chat')} {app.key_of('prompt.focus')}", "ask something in Chat"),
            (f"{app.key_of('mode.chat')} {app.key_of('demo.play')}", "play the recording there"),
            (app.key_of("command.palette"), "open a stored trace"),
        ):
            line = parts.said(f"{keys:>8}  ", paint.fore("accent", bold=True))
            lines.append(line.append(what, paint.fore("muted")))
        return lines


class RouterEvidence(_RouterText):
    """The meters of the rules, and the compass; without numbers, the rules."""

    def lines(self) -> list[Text]:
        session, width = self.session, self.size.width
        token, turn = session.token, session.turn
        found = self.steering.recommendation(session.cursor)
        if token is None or turn is None or found is None:
            return [self.heading("RULES").append(f"  {ZONES_V1.name}", self.paint.fore("muted")),
                    *parts.rule_rows(self.paint)]  # fmt: skip
        rows = parts.evidence_rows(found, self.paint, width)
        firewall = parts.firewall_rows(token, turn, self.paint, width)
        compass = [*parts.compass_rows(token, turn, self.paint, width, compact=self.narrow), *firewall]
        learned = self._learned(turn, token, width)
        if self.narrow:
            return [*rows, *compass, *learned]
        head = self.heading("EVIDENCE").append(f"  mean of {found.settled.of} steps", self.paint.fore("muted"))
        shown = [head, *rows, Text(""), *compass, *([Text("")] if learned else []), *learned]
        if learned and len(shown) > self.size.height:
            compass = [*parts.compass_rows(token, turn, self.paint, width, compact=True), *firewall]
            shown = [head, *rows, Text(""), *compass, Text(""), *learned]
        return shown

    def _learned(self, turn: Turn, token: Token, width: int) -> list[Text]:
        """What the discovery says of the turn, and of the window behind the token; [] without one."""
        learned = self.geom.learned
        tally = learned.tally(turn)
        if tally is None or not tally.n:
            return []
        return router_rows(tally, learned, learned.off(turn, token), self.paint, width, compact=self.narrow)


class RouterPlan(_RouterText):
    """What the next run is asked with, and by which key that changes."""

    def lines(self) -> list[Text]:
        app, paint, plan = self.geom, self.paint, self.steering.plan()
        line = self.heading("NEXT RUN  ").append(plan.ask.described(), paint.fore("foreground", bold=True))
        if plan.advice is None and not self.steering.preferences.always:
            line.append("  nothing applied", paint.fore("muted"))
        else:
            word = WORDS["always" if plan.advice is None else plan.scope]
            line.append(f"  advised {word}", paint.fore("accent", bold=True))
            line.append("" if plan.advice is not None else ", once there is advice", paint.fore("accent", bold=True))
            line.append(f"  {app.key_of('apply.clear')} undoes", paint.fore("muted"))
        return [line]


def has_times(widget: KeptText | DecisionList) -> bool:
    """Whether there is room for the times of decisions, and a turn that has any: traces keep none."""
    return not widget.screen.has_class("-narrow") and any(turn.times_ms for turn in widget.session.turns)


class DecisionHead(_RouterText):
    """Names of the columns."""

    def lines(self) -> list[Text]:
        return [parts.decision_heading(self.paint, clock=has_times(self), action=not self.narrow)]


class DecisionList(Rows):
    """Decisions of every turn, oldest first, below a row that says what was applied to the turn's request.

    `selected`: the row that `enter` opens; it stays on the last one until the user moves it.
    """

    EMPTY = "  No decision yet: a zone has to have three of five steps."

    def __init__(self, session: Session, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.session = session
        self.entries: list[tuple[int, Decision | None]] = []
        self.selected = 0
        self._at_end = True

    @property
    def count(self) -> int:
        return len(self.entries)

    @property
    def steering(self) -> Steering:
        return cast("GeomApp", self.app).live.steering

    def session_changed(self, changed: Changed) -> None:
        """Take what is new; the last row stays selected unless another one was chosen."""
        if changed & (Changed.TURNS | Changed.TOKENS):
            entries: list[tuple[int, Decision | None]] = [
                (number, decision)
                for number, turn in enumerate(self.session.turns)
                if turn.tokens
                for decision in (None, *self.steering.decisions(turn))
            ]
            if entries != self.entries or changed & Changed.TURNS:
                self._show(entries)
        if changed & (Changed.VIEW | Changed.STATE):
            self.forget()

    def _show(self, entries: list[tuple[int, Decision | None]]) -> None:
        self.entries = entries
        if self._at_end or self.selected >= self.count:
            self.selected = max(0, self.count - 1)
            self._at_end = True
        self.forget()
        self.fit()
        if self.count and self._at_end:
            self.show_row(self.selected)

    def on_focus(self) -> None:
        self.forget()

    def on_blur(self) -> None:
        self.forget()

    def row(self, number: int, width: int) -> Text:
        turn_number, decision = self.entries[number]
        turn = self.session.turns[turn_number]
        if decision is None:
            applied = applied_to(turn.trace.header)
            scope = "" if applied is None else WORDS.get(applied.scope, applied.scope)
            row = parts.turn_row(turn_number, turn, applied, scope, self.paint)
        else:
            action = not self.screen.has_class("-narrow")
            row = parts.decision_row(decision, self.paint, clock=has_times(self), action=action)
        here = number == self.selected
        line = parts.said("▌" if here else " ", self.paint.fore("accent", bold=True)).append_text(row)
        line.truncate(width, overflow="ellipsis", pad=True)
        if here and self.has_focus:
            weak = self.paint.plain or self.paint.ansi
            line.stylize(Style(bold=True) if weak else Style(bgcolor=self.paint.colour("panel")))
        return line

    def place(self, number: int) -> Place:
        """The token of a row: a decision's own, a turn's first."""
        turn, decision = self.entries[number]
        return Place(turn, 0 if decision is None else decision.token_index)

    def select(self, number: int) -> None:
        """Choose a row, as near as there is one, and bring it into view."""
        if not self.count:
            return
        self.selected = max(0, min(self.count - 1, number))
        self._at_end = self.selected == self.count - 1
        self.forget()
        self.show_row(self.selected)

    def open(self) -> bool:
        """Put the cursor on the token of the selected row; False when there is none."""
        if not self.count:
            return False
        self.session.go(self.place(self.selected), remember=True)
        return True

    def clicked(self, number: int, *, again: bool) -> None:  # noqa: ARG002
        self.select(number)
        self.open()
