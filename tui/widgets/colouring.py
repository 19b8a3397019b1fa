"""How a token is coloured by what the overlay shows: the same wherever tokens are listed."""

from __future__ import annotations

from rich.style import Style

from geomcli.compass import HALT_THRESHOLD
from geomcli.tui.session import Overlay, Place, Session
from geomcli.tui.themes import Paint

LEFT = Style(dim=True, strike=True)  # over the style of a token that has left the KV cache


def strongest_influence(session: Session) -> float:
    """The influence that is drawn as 1."""
    return max((max(turn.influence, default=0.0) for turn in session.turns), default=0.0) or 1.0


def overlay_value(session: Session, place: Place) -> float | None:
    """The overlay's number of a token: confidence, entropy, drift or influence; None where it has none."""
    token = session.token_of(place)
    if token is None or not token.captured:
        return None
    match session.overlay:
        case Overlay.ZONE:
            return token.confidence
        case Overlay.ENTROPY:
            return token.entropy
        case Overlay.DRIFT:
            return token.drift
        case Overlay.INFLUENCE:
            return session.turns[place.turn].influence[place.token]
        case Overlay.OFF:
            return None


def token_style(session: Session, place: Place, paint: Paint, strongest: float) -> Style:
    """A token's style under the overlay. `strongest`: as `strongest_influence` has it."""
    token = session.token_of(place)
    if token is None:
        return Style()
    if session.overlay is Overlay.ZONE:
        return paint.zone(token.zone) if token.captured else Style()
    scale = {Overlay.DRIFT: HALT_THRESHOLD, Overlay.INFLUENCE: strongest}.get(session.overlay, 1.0)
    value = overlay_value(session, place)
    return Style() if value is None else paint.ramp(value / scale)
