"""What the zone of the last steps recommends for the next run: settled zone, evidence, sampling, and a log of changes.

Pure functions over a trace's step records. The temperatures, top_p and capture modes are conventions of the ruleset,
not results: nobody has measured that they make answers better. `geomcli.preferences` keeps what a user wants applied.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from geomcli.compass import HALT, WARN
from geomcli.schema import CAPTURE_MODES, Record, has_numbers
from geomcli.zones import UNKNOWN, ZONES_V1, Evidence, Ruleset, ZoneRule, classify

WINDOW = 5  # steps that vote
MAJORITY = 3  # votes that change the zone

CaptureMode = Literal["raw", "sketch", "fingerprint"]


class Settled(msgspec.Struct, frozen=True):
    """The zone after a step. votes: steps for it among the last `of`; confidence: their mean confidence."""

    token_index: int
    zone: str
    votes: int
    of: int
    confidence: float


class Advice(msgspec.Struct, frozen=True):
    """Request settings; None leaves what the request says."""

    temperature: float | None
    top_p: float | None
    capture: CaptureMode


class Recommendation(msgspec.Struct, frozen=True):
    """The zone now and what follows from it.

    evidence: each rule's value (mean over the window), threshold and margin; empty when the trace was classified by
    another ruleset than the one given, whose thresholds are not known. reasons: sentences.
    """

    settled: Settled
    advice: Advice
    cache: str
    action: str
    evidence: tuple[Evidence, ...]
    reasons: tuple[str, ...]


class Change(msgspec.Struct, frozen=True):
    """One request setting that would have been another; None: not set."""

    field: str
    before: float | str | None
    after: float | str | None

    def __str__(self) -> str:
        before, after = ("unset" if value is None else f"{value}" for value in (self.before, self.after))
        return f"{self.field} {before} → {after}"


class Decision(msgspec.Struct, frozen=True):
    """One change of the settled zone. time_ms: epoch, None where it is not known (steps carry no time)."""

    token_index: int
    time_ms: int | None
    zone: str
    confidence: float
    action: str
    changes: tuple[Change, ...]

    def __str__(self) -> str:
        changed = ", ".join(map(str, self.changes)) or "nothing"
        return (
            f"#{self.token_index} · {self.zone} · {self.confidence:.2f} · {self.action} · would have changed: {changed}"
        )


class Hysteresis:
    """The settled zone of a trace that grows.

    It changes when at least MAJORITY of the last WINDOW steps are in one other zone; until any zone has that many it
    is "unknown".
    """

    def __init__(self) -> None:
        self.zone = UNKNOWN
        self._window: deque[tuple[str, float]] = deque(maxlen=WINDOW)

    def vote(self, zone: str, confidence: float) -> str:
        """Take the zone of one more step: the settled zone."""
        self._window.append((zone, confidence))
        leader, votes = Counter(name for name, _ in self._window).most_common(1)[0]
        if votes >= MAJORITY:
            self.zone = leader
        return self.zone

    def update(self, step: Record) -> Settled:
        """Take a step that has numbers."""
        self.vote(step.get("zone") or UNKNOWN, step.get("zone_confidence") or 0.0)
        own = [confidence for name, confidence in self._window if name == self.zone]
        confidence = sum(own) / len(own) if own else 0.0
        return Settled(step["tokenIndex"], self.zone, len(own), len(self._window), confidence)


def settle(steps: Iterable[Record]) -> list[Settled]:
    """The zone after each step that has numbers, as `Hysteresis` has it."""
    hysteresis = Hysteresis()
    return [hysteresis.update(step) for step in steps if has_numbers(step)]  # type: ignore[arg-type]


def recommend(
    steps: Sequence[Record],
    *,
    modes: Sequence[str] = CAPTURE_MODES,
    ruleset: Ruleset = ZONES_V1,
    classified_by: str | None = None,
    settled: Settled | None = None,
) -> Recommendation | None:
    """Recommendation after the last of `steps`; None without numbers.

    `settled`: the settled zone there, where it is known; then the last WINDOW `steps` with numbers are enough.

    `modes`: capture modes that the server lets out (capabilities). `classified_by`: the ruleset of the trace's header,
    or None to believe that it is `ruleset`.
    """
    kept = [step for step in steps if has_numbers(step)]  # type: ignore[arg-type]
    if not kept:
        return None
    now = settled or settle(kept)[-1]
    rule = _rule(now.zone, ruleset)
    last = kept[-WINDOW:]
    drifting = last[-1].get("compass") in (WARN, HALT)
    reasons = [_zone_sentence(now)]
    known = classified_by in (None, "", ruleset.name)
    if not known:
        reasons.append(f"The trace was classified by {classified_by}: the thresholds of its rules are not known here.")
    capture, why = _capture(now.zone, drifting, modes)
    reasons.append(why)
    return Recommendation(
        settled=now,
        advice=Advice(rule.temperature if rule else None, rule.top_p if rule else None, capture),
        cache=rule.cache if rule else "standard",
        action=rule.action if rule else "none",
        evidence=_evidence(last, ruleset) if known else (),
        reasons=tuple(reasons),
    )


def decisions(
    steps: Iterable[Record],
    sampling: Mapping[str, Any],
    *,
    modes: Sequence[str] = CAPTURE_MODES,
    ruleset: Ruleset = ZONES_V1,
    times_ms: Mapping[int, int] | None = None,
) -> list[Decision]:
    """Each change of the settled zone, oldest first, with what it would have changed in the request.

    `sampling`: the request's own fields, as `capture` of a trace's header has them. `times_ms`: token index -> epoch ms
    of arrival, where somebody noted it.
    """
    log = DecisionLog(sampling, modes=modes, ruleset=ruleset)
    for step in steps:
        log.add(step, (times_ms or {}).get(step["tokenIndex"]))
    return log.decisions


class DecisionLog:
    """What `settle` and `decisions` say of a trace that grows: `settled`, one for each step with numbers, `decisions`.

    Arguments as in `decisions`.
    """

    def __init__(
        self, sampling: Mapping[str, Any], *, modes: Sequence[str] = CAPTURE_MODES, ruleset: Ruleset = ZONES_V1
    ) -> None:
        self.settled: list[Settled] = []
        self.decisions: list[Decision] = []
        self._sampling, self._modes, self._ruleset = sampling, modes, ruleset
        self._hysteresis = Hysteresis()

    def add(self, step: Record, time_ms: int | None = None) -> None:
        """Take the next step; one without numbers changes nothing."""
        if not has_numbers(step):  # type: ignore[arg-type]
            return
        before = self._hysteresis.zone
        settled = self._hysteresis.update(step)
        self.settled.append(settled)
        if settled.zone != before:
            self.decisions.append(self._decision(step, settled, time_ms))

    def _decision(self, step: Record, settled: Settled, time_ms: int | None) -> Decision:
        rule = _rule(settled.zone, self._ruleset)
        capture, _ = _capture(settled.zone, step.get("compass") in (WARN, HALT), self._modes)
        advice = Advice(rule.temperature if rule else None, rule.top_p if rule else None, capture)
        return Decision(
            token_index=settled.token_index,
            time_ms=time_ms,
            zone=settled.zone,
            confidence=settled.confidence,
            action=rule.action if rule else "none",
            changes=changes(self._sampling, advice),
        )


def changes(sampling: Mapping[str, Any], advice: Advice) -> tuple[Change, ...]:
    """What the advice would change in a request with these fields; what is the same already is left out."""
    found = []
    for field, before, after in (
        ("temperature", sampling.get("temperature"), advice.temperature),
        ("top_p", sampling.get("top_p"), advice.top_p),
        ("capture", capture_mode(sampling), advice.capture),
    ):
        if after is not None and before != after:
            found.append(Change(field, before, after))
    return tuple(found)


def capture_mode(fields: Mapping[str, Any]) -> CaptureMode | None:
    """The capture mode that request fields ask for; None when they leave it to the server."""
    if fields.get("attention_fingerprint_mode") or fields.get("attention_fingerprint_only"):
        return "fingerprint"
    if fields.get("attention_sketch_mode"):
        return "sketch"
    if fields.get("top_k_attention") is not None or fields.get("attention_derotate"):
        return "raw"
    return "raw" if fields.get("attention_fingerprint_mode") is False else None


def _rule(zone: str, ruleset: Ruleset) -> ZoneRule | None:
    return next((rule for rule in ruleset.rules if rule.zone == zone), None)


def _evidence(steps: Sequence[Record], ruleset: Ruleset) -> tuple[Evidence, ...]:
    fingerprint = np.mean([step["fingerprint"] for step in steps], axis=0)
    ripples = [step["ripple"] for step in steps if step.get("ripple") is not None]
    return classify(fingerprint, float(np.mean(ripples)) if ripples else None, ruleset).evidence


def _capture(zone: str, drifting: bool, modes: Sequence[str]) -> tuple[CaptureMode, str]:
    """The mode worth its bytes, and why: links where something needs to be looked at, hubs for far reading."""
    wanted: CaptureMode = "fingerprint"
    why = "Fingerprints are enough: nothing asks for single links."
    if drifting or zone == "diffuse":
        wanted = "raw"
        reason = "The compass warns" if drifting else "Attention is diffuse"
        why = f"{reason}: raw links show where to."
    elif zone == "long_range":
        wanted, why = "sketch", "The answer reads far back: a sketch keeps the hubs of every layer."
    if wanted in modes or not modes:
        return wanted, why
    for mode in CAPTURE_MODES[::-1]:
        if mode in modes:
            return mode, f"{why} The server lets out only {', '.join(modes)}."  # type: ignore[return-value]
    return "fingerprint", why


def _zone_sentence(now: Settled) -> str:
    if now.zone == UNKNOWN:
        return f"No zone has {MAJORITY} of the last {now.of} steps: the request keeps its own sampling."
    return f"{now.votes} of the last {now.of} steps are in {now.zone}."
