"""What differs between two traces: its numbers, and the sentences that say them.

Sentences speak of B against A. A difference below a point of the attention is not worth one; one that is not larger
than the noise of the steps, or was not tested against it, is called that.
"""

from __future__ import annotations

import msgspec

from geomcli.interpretation import SHARE_STEPS
from geomcli.significance import Verdict


class Divergence(msgspec.Struct, frozen=True):
    """The first row that is not the same; an index and a text are None where that side has no token there."""

    row: int
    a: int | None
    b: int | None
    text_a: str | None
    text_b: str | None


class Metric(msgspec.Struct, frozen=True):
    """One number of both sides; `delta` = b - a, `relative` = delta / a; None where it cannot be said.

    `interval`: of `delta`, simultaneous with all others of the comparison; None where it was not tested.
    """

    name: str
    label: str
    unit: str
    a: float | None
    b: float | None
    delta: float | None
    relative: float | None
    interval: tuple[float, float] | None = None
    verdict: Verdict = "untested"


class ZoneShare(msgspec.Struct, frozen=True):
    """Share of the steps in a zone; `interval` and `verdict` as in `Metric`."""

    zone: str
    a: float
    b: float
    delta: float
    interval: tuple[float, float] | None = None
    verdict: Verdict = "untested"


class ZoneAgreement(msgspec.Struct, frozen=True):
    """Zones of aligned tokens, side by side: the one number that sees the order of the steps.

    agreement: share of the pairs in one zone; chance: what unrelated orders of the same zones would have; kappa:
    Cohen's, 0 by chance and 1 for the same, None where there is one zone only; interval: of kappa.
    """

    pairs: int
    agreement: float
    chance: float
    kappa: float | None
    interval: tuple[float, float] | None = None


_SPOKEN = {
    "local": "local mass (0 to 7 tokens back)",
    "mid": "mid-range mass (8 to 255 tokens back)",
    "long": "long-range mass (256 tokens back and more)",
    "sink_mass": "mass on sinks",
}


def sentences(
    metrics: tuple[Metric, ...],
    zones: tuple[ZoneShare, ...],
    divergence: Divergence | None,
    agreement: ZoneAgreement | None = None,
) -> tuple[str, ...]:
    """What differs, largest first, behind where the texts part, which is longer and how often aligned tokens agree.

    Empty where nothing differs.
    """
    found: list[tuple[float, str]] = []
    smallest = SHARE_STEPS[0]
    for m in metrics:
        if m.delta is None or m.a is None or m.b is None or m.unit != "share" or abs(m.delta) < smallest:
            continue
        values = f"{m.b:.3f} against {m.a:.3f}"
        if m.name in _SPOKEN:
            how = "more" if m.delta > 0 else "less"
            # A share of nearly nothing is not a number that says anything.
            amount = f"{abs(m.delta) * 100:.1f} points" if m.a < 2 * smallest else f"{abs(m.delta) / m.a:.0%}"
            found.append((abs(m.delta), f"B keeps {amount} {how} {_SPOKEN[m.name]}: {values}{_standing(m)}."))
        elif m.name == "bin_entropy":
            how = "more diffuse" if m.delta > 0 else "more focused"
            found.append((abs(m.delta), f"B is {how}: bin entropy {values}{_standing(m)}."))
        elif m.name == "max_drift":
            how = "changes its pattern more" if m.delta > 0 else "changes its pattern less"
            found.append((abs(m.delta), f"B {how}: largest drift {values}, not tested: one step each."))
    for share in zones:
        if abs(share.delta) >= smallest:
            how = "more" if share.delta > 0 else "fewer"
            amount = f"{abs(share.delta) * 100:.0f} points"
            text = f"B has {amount} {how} of its tokens in {share.zone}: {share.b:.0%} against {share.a:.0%}"
            found.append((abs(share.delta), f"{text}{_standing(share)}."))
    found.sort(key=lambda item: (-item[0], item[1]))
    said = [text for _, text in found]
    if agreement is not None and agreement.agreement <= 1 - smallest:
        said.insert(0, _agreeing(agreement))
    tokens = metrics[0]
    if tokens.delta:
        how = "longer" if tokens.delta > 0 else "shorter"
        count = f"{abs(tokens.delta):.0f} token{'s' if abs(tokens.delta) != 1 else ''}"
        said.insert(0, f"B is {count} {how}: {tokens.b:.0f} against {tokens.a:.0f}.")
    if divergence is not None:
        said.insert(0, _parting(divergence))
    return tuple(said)


def _standing(difference: Metric | ZoneShare) -> str:
    """What keeps a difference from being more than what these steps happen to show."""
    if difference.verdict == "untested":
        return ", not tested: too few independent steps"
    return ", within the noise of the steps" if difference.verdict == "noise" else ""


def _agreeing(agreement: ZoneAgreement) -> str:
    pairs = f"{agreement.pairs} aligned token{'s' if agreement.pairs != 1 else ''}"
    text = f"At {pairs} the zones agree in {agreement.agreement:.0%}; unrelated orders would in {agreement.chance:.0%}"
    if agreement.interval is None:
        return f"{text}, not tested: too few pairs." if agreement.kappa is not None else f"{text}."
    low, high = agreement.interval
    return f"{text}: {'more than' if low > 0 else 'less than' if high < 0 else 'no more than'} by chance."


def _parting(divergence: Divergence) -> str:
    def shown(index: int | None, text: str | None) -> str:
        if index is None:
            return "nothing"
        return f"#{index} {msgspec.json.encode(text).decode()}" if text is not None else f"#{index}"

    a, b = shown(divergence.a, divergence.text_a), shown(divergence.b, divergence.text_b)
    return f"The texts part at {a} in A, {b} in B."
