"""The detectors by name: what each needs, whether it has weights, and how it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from geomcli.compass import DRIFT_WINDOW
from geomcli.detectors.calibration import MAKE, Calibration
from geomcli.detectors.compass import CompassDetector
from geomcli.detectors.heads import HeadFeatures
from geomcli.detectors.logprob import LEAST, LogprobDetector
from geomcli.detectors.observations import HEADS, LINKS, LOGITS, Detector
from geomcli.detectors.rauq import ALPHA, RauqDetector
from geomcli.detectors.received import TOP, ReceivedFeatures
from geomcli.detectors.summary import Features
from geomcli.detectors.trained import TrainedDetector
from geomcli.errors import UsageError

Settings = Mapping[str, float]
MOST = 1024  # of a setting that counts tokens or positions
# What a request has to ask for, so that entries have what a detector needs.
CAPTURED_BY = {
    LOGITS: "entries with `logit_stats` (attention_logit_stats)",
    HEADS: "entries with `head_stats` (attention_head_stats)",
    LINKS: "raw entries (`geom run --capture raw`)",
}


@dataclass(frozen=True)
class Kind:
    """about: one sentence; settings: with their defaults; whole: settings that are counts; features: of a detector with
    weights, from captured layers and heads; make: of one without.
    """

    name: str
    about: str
    needs: frozenset[str]
    settings: Settings
    whole: frozenset[str] = frozenset()
    make: Callable[[Mapping[str, Any]], Detector[Any]] | None = None
    features: Callable[[tuple[int, ...], int, Mapping[str, Any]], Features] | None = None

    @property
    def trained(self) -> bool:
        return self.features is not None

    def set(self, given: Settings | None) -> dict[str, Any]:
        """All settings; UsageError names one that the detector does not have or that is no such number."""
        for name, value in (given or {}).items():
            if name not in self.settings:
                known = ", ".join(self.settings) or "none"
                raise UsageError(f"detector {self.name} has no setting {name!r}; it has: {known}.")
            if name in self.whole and not (1 <= value <= MOST and value == int(value)):
                raise UsageError(f"{name} of detector {self.name} must be a whole number of 1..{MOST}, got {value!r}.")
        merged = {**self.settings, **(given or {})}
        return {name: int(value) if name in self.whole else float(value) for name, value in merged.items()}


DETECTORS = {
    kind.name: kind
    for kind in (
        Kind(
            "compass", "Drift of the attention pattern: a meter for a change of regime.", CompassDetector.needs,
            {"window": DRIFT_WINDOW}, frozenset({"window"}), lambda s: CompassDetector(**s),
        ),
        Kind(
            "logprob", "Running mean of -logprob: how unlikely the model finds its own answer.", LogprobDetector.needs,
            {"least": LEAST}, frozenset({"least"}), lambda s: LogprobDetector(**s),
        ),
        Kind(
            "rauq", "RAUQ: confidence passed on by heads that look at the token before.", RauqDetector.needs,
            {"alpha": ALPHA, "least": LEAST}, frozenset({"least"}), lambda s: RauqDetector(**s),
        ),
        Kind(
            "heads", "Trained on logit numbers and the scalars of each captured head.", HeadFeatures.needs,
            {}, features=lambda layers, heads, s: HeadFeatures(layers, heads, **s),
        ),
        Kind(
            "received", "Trained on how much the most looked-at positions receive.", ReceivedFeatures.needs,
            {"top": TOP}, frozenset({"top"}), features=lambda _layers, _heads, s: ReceivedFeatures(**s),
        ),
    )
}  # fmt: skip


def kind(name: str) -> Kind:
    """UsageError where there is no such detector."""
    if name not in DETECTORS:
        raise UsageError(f"there is no detector {name!r}; there are: {', '.join(DETECTORS)}.")
    return DETECTORS[name]


def create(name: str, settings: Settings | None = None, calibration: Calibration | None = None) -> Detector[Any]:
    """A detector by its name; settings left out are those of the calibration, else the defaults.

    UsageError for a name or setting that does not exist, for a calibration of another detector, and for a detector with
    weights without one.
    """
    chosen = kind(name)
    if calibration is not None:
        if calibration.about.detector != name:
            raise UsageError(f"the calibration is for detector {calibration.about.detector}, not for {name}.", MAKE)
        settings = {**calibration.about.settings, **(settings or {})}
    values = chosen.set(settings)
    try:
        if chosen.make is not None:
            return chosen.make(values)
        assert chosen.features is not None
        if calibration is None or calibration.stack is None:
            raise UsageError(f"detector {name} has no weights without a calibration.", MAKE.replace("NAME", name))
        about = calibration.about
        return TrainedDetector(name, chosen.features(about.layers, about.heads, values), calibration.stack)
    except ValueError as error:
        raise UsageError(f"detector {name}: {error}.", MAKE.replace("NAME", name)) from None
