"""Zone-based sampling: the settled zone of an answer chooses the temperature and top_p of its next tokens.

Temperatures and top_p are those of the zone rules, conventions that nobody has shown to make answers better. The
zone is settled as `geomcli.recommendation.Hysteresis` has it: three of the last five tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from geomcli.recommendation import Hysteresis
from geomcli.zones import UNKNOWN, ZONES_V1, Ruleset


class Chosen(NamedTuple):
    """temperature, top_p: None for the request's own, which hold until a zone has settled."""

    zone: str
    temperature: float | None
    top_p: float | None


class ZoneSampler:
    """The choice for one answer, from the zones of its tokens in their order."""

    def __init__(self, ruleset: Ruleset = ZONES_V1) -> None:
        self._rules = {rule.zone: rule for rule in ruleset.rules}
        self._hysteresis = Hysteresis()
        self.chosen = Chosen(UNKNOWN, None, None)

    def update(self, zone: str) -> Chosen:
        """Take the zone of the next token: what tokens that are sampled from then on are sampled with."""
        settled = self._hysteresis.vote(zone, 0.0)
        rule = self._rules.get(settled)
        self.chosen = Chosen(settled, *((None, None) if rule is None else (rule.temperature, rule.top_p)))
        return self.chosen
