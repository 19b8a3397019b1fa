"""What a firewall is to do: the server's flags and one request's field as checked values. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from geomcli.compass import CONSECUTIVE, DRIFT_WINDOW, HALT_THRESHOLD
from geomcli.detectors import registry
from geomcli.detectors.calibration import Calibration, load
from geomcli.detectors.observations import LINKS, LOGITS
from geomcli.errors import GeomError
from geomcli.firewall import ACTIONS, EARLY_STOP, LOG_ONLY, Action, check_threshold

FIELD = "attention_firewall"
FLAG, WINDOW_FLAG, THRESHOLD_FLAG, DETECTOR_FLAG, CALIBRATION_FLAG = (
    "--attention-firewall",
    "--attention-firewall-window",
    "--attention-firewall-threshold",
    "--attention-firewall-detector",
    "--attention-calibration",
)
OFF = "off"
CHOICES = (OFF, *ACTIONS)
COMPASS = "compass"
DETECTORS = tuple(registry.DETECTORS)
MIN_WINDOW, MAX_WINDOW = 2, 1024
KEYS = ("action", "detector", "window_size", "variance_threshold", "threshold")
MAKE = "geom calibrate … --out FILE, then --attention-calibration FILE"
# Request fields that change which attention a firewall sees.
SEEN_BY = (
    "attention_tokens_stride",
    "attention_tokens_window",
    "attention_mask_prefix",
    "attention_capture_layer_ids",
    "attention_capture_head_ids",
)
# Those among them that also change which tokens, or how much of the attention, a calibration is about; layers and heads
# are held against the calibration's own.
_TOKENS = ("attention_tokens_stride",)
_ATTENTION = ("attention_tokens_window", "attention_mask_prefix")


class Known(msgspec.Struct, frozen=True):
    """A calibration that the server was started with: where it lay, what its bytes were, and what of it has to be known
    before.
    """

    path: str
    digest: str
    detector: str
    threshold: float
    consecutive: int
    layers: tuple[int, ...] = ()
    window_size: int = DRIFT_WINDOW


class Guard(msgspec.Struct, frozen=True):
    """window_size: tokens that drift is taken over; variance_threshold: score at which to halt, of the compass a drift;
    consecutive: scores in a row; calibration: file of the detector's, "" without one.
    """

    action: Action
    window_size: int = DRIFT_WINDOW
    variance_threshold: float = HALT_THRESHOLD
    detector: str = COMPASS
    consecutive: int = CONSECUTIVE
    calibration: str = ""
    calibrated: bool = False  # whether the threshold is the calibration's, or below it
    layers: tuple[int, ...] = ()  # the only ones it may see; all without any

    @property
    def needs(self) -> frozenset[str]:
        """What has to be captured for the detector, of geomcli.detectors.observations."""
        return registry.DETECTORS[self.detector].needs

    def of_layers(self, layers: tuple[int, ...]) -> tuple[int, ...]:
        """Those of captured layers that the detector looks at."""
        return layers[-1:] if LINKS in self.needs else layers


def known_from(paths: Sequence[str]) -> tuple[Known, ...]:
    """The calibrations in files; ValueError where one cannot be read, or two are of one detector."""
    made: dict[str, Known] = {}
    for path in paths:
        try:
            found = load(Path(path))
        except GeomError as error:
            raise ValueError(f"{CALIBRATION_FLAG}: {str(error).removesuffix('.')}") from None
        about = found.about
        if about.detector not in DETECTORS:
            raise ValueError(f"{CALIBRATION_FLAG} {path}: the server has no detector {about.detector}")
        if about.detector in made:
            raise ValueError(f"{CALIBRATION_FLAG}: {made[about.detector].path} and {path} are both of {about.detector}")
        window = int(about.settings.get("window", DRIFT_WINDOW)) if about.detector == COMPASS else DRIFT_WINDOW
        made[about.detector] = Known(
            str(Path(path).absolute()), found.digest, about.detector, about.threshold, about.consecutive, about.layers,
            window,
        )  # fmt: skip
    return tuple(made.values())


def loaded(known: Sequence[Known], model: str, layers: tuple[int, ...], heads: int) -> dict[str, Calibration]:
    """The calibrations by path, read once. GeomError where one is of another model, or of other layers or heads than
    are captured, or where its file is not the one that the server was started with.
    """
    made = {}
    for one in known:
        found = made[one.path] = load(Path(one.path))
        if found.digest != one.digest:
            raise GeomError(f"{one.path} is not the file that the server was started with.", "start it again")
        found.check(model, layers, heads)
    return made


def of_flags(
    action: str,
    window: int | None = None,
    threshold: float | None = None,
    detector: str = COMPASS,
    known: Sequence[Known] = (),
) -> Guard | None:
    """The server's own, None for `off`; ValueError names the flag. None: the calibration's or the default."""
    if action not in CHOICES:
        raise ValueError(f"{FLAG} must be one of {', '.join(CHOICES)}, got {action}")
    if detector not in DETECTORS:
        raise ValueError(f"{DETECTOR_FLAG} must be one of {', '.join(DETECTORS)}, got {detector}")
    if window is not None and not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"{WINDOW_FLAG} must be {MIN_WINDOW}..{MAX_WINDOW}, got {window}")
    if window is not None and detector != COMPASS:
        raise ValueError(f"{WINDOW_FLAG} is of the detector {COMPASS}, not of {detector}")
    if threshold is not None:
        _check_score(threshold, detector, THRESHOLD_FLAG)
    if action == OFF:
        return None
    return _made(action, detector, window, threshold, known, THRESHOLD_FLAG)


def _check_score(threshold: object, detector: str, name: str) -> None:
    number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
    number = number and abs(threshold) <= sys.float_info.max  # type: ignore[arg-type]
    if detector == COMPASS and (not number or not 0 < threshold < 1):  # type: ignore[operator]
        raise ValueError(f"{name} must be a number above 0 and below 1, got {threshold!r:.40}")
    if not number:
        raise ValueError(f"{name} must be a number, got {threshold!r:.40}")


def _made(
    action: str, detector: str, window: int | None, threshold: float | None, known: Sequence[Known], name: str
) -> Guard:
    """name: of the threshold, for errors."""
    found = next((one for one in known if one.detector == detector), None)
    if found is not None and window not in (None, found.window_size):
        found = None  # another drift, with a level of its own
    if found is None and registry.DETECTORS[detector].trained:
        raise ValueError(f"the detector {detector} has no weights without a calibration: {MAKE}")
    if found is None and threshold is None and detector != COMPASS:
        raise ValueError(f"{name}: the detector {detector} has no threshold without a calibration: {MAKE}")
    size = window or (DRIFT_WINDOW if found is None else found.window_size)
    if found is None:
        level, calibrated = HALT_THRESHOLD if threshold is None else float(threshold), False
    else:
        level = found.threshold if threshold is None else float(threshold)
        calibrated = level == found.threshold
    if detector == COMPASS:
        check_threshold(level, size, name)
    return Guard(
        action,  # type: ignore[arg-type]
        size,
        level,
        detector,
        CONSECUTIVE if found is None else found.consecutive,
        "" if found is None else found.path,
        calibrated,
        () if found is None else found.layers,
    )


def of_request(body: Mapping[str, Any], server: Guard | None, known: Sequence[Known] = ()) -> Guard | None:
    """What watches this request's answer, None if nothing does; it may be stricter than the server's, never less.

    known: calibrations that the server has. ValueError names the field, and the key in it.
    """
    given = body.get(FIELD)
    if given is None:
        return server
    if given is False:
        if server is not None:
            raise ValueError(f"{FIELD}: this server watches every answer ({FLAG} {server.action})")
        return None
    if given is not True and not isinstance(given, dict):
        raise ValueError(f"{FIELD} must be true, false or an object with some of {', '.join(KEYS)}")
    made = _guard({} if given is True else given, server, known)
    if server is not None:
        _compare(made, server)
    return made


def check_calibrated(guard: Guard | None, given: Mapping[str, Any], own: Mapping[str, int]) -> None:
    """ValueError for a field by which a calibrated threshold would be held against other numbers; own: the server's."""
    if guard is None or not guard.calibrated:
        return
    for name in _TOKENS if guard.needs == {LOGITS} else (*_TOKENS, *_ATTENTION):
        if name in given and given[name] != own.get(name, 0):
            raise ValueError(
                f"{name} changes what {guard.detector} was calibrated on; leave it out, or give {FIELD}.threshold"
            )


def seen_by(given: Mapping[str, Any], server: Guard | None, own: Mapping[str, int]) -> None:
    """ValueError for a field that would change what the server's own firewall sees; own: the server's values."""
    if server is None:
        return
    for name in SEEN_BY:
        if name in given and given[name] != own.get(name):
            raise ValueError(
                f"{name} would change what this server's firewall ({FLAG} {server.action}) sees; leave it out"
            )


def _guard(given: Mapping[str, Any], server: Guard | None, known: Sequence[Known]) -> Guard:
    for key in given:
        if key not in KEYS:
            raise ValueError(f"{FIELD}.{key} is not one of {', '.join(KEYS)}")
    default = server or Guard(EARLY_STOP)
    action, detector = given.get("action", default.action), given.get("detector", default.detector)
    if action not in ACTIONS:
        raise ValueError(f"{FIELD}.action must be one of {', '.join(ACTIONS)}, got {action!r:.40}")
    if detector not in DETECTORS:
        raise ValueError(f"{FIELD}.detector must be one of {', '.join(DETECTORS)}, got {detector!r:.40}")
    window, name = given.get("window_size"), "threshold" if "threshold" in given else "variance_threshold"
    threshold = given.get(name)
    if "threshold" in given and "variance_threshold" in given:
        raise ValueError(f"{FIELD}.threshold and {FIELD}.variance_threshold are one value; leave one of them out")
    if window is not None and (isinstance(window, bool) or not isinstance(window, int)):
        raise ValueError(f"{FIELD}.window_size must be an integer in {MIN_WINDOW}..{MAX_WINDOW}, got {window!r:.40}")
    if window is not None and not MIN_WINDOW <= window <= MAX_WINDOW:
        raise ValueError(f"{FIELD}.window_size must be an integer in {MIN_WINDOW}..{MAX_WINDOW}, got {window!r:.40}")
    if window is not None and detector != COMPASS:
        raise ValueError(f"{FIELD}.window_size is of the detector {COMPASS}, not of {detector}")
    if threshold is not None:
        _check_score(threshold, detector, f"{FIELD}.{name}")
    if server is not None and detector == server.detector:
        window = server.window_size if window is None and detector == COMPASS else window
        threshold = server.variance_threshold if threshold is None else threshold
    return _made(action, detector, window, threshold, known, f"{FIELD}.{name}")


def _compare(asked: Guard, server: Guard) -> None:
    if asked.detector != server.detector:
        raise ValueError(f"{FIELD}.detector: this server watches with {server.detector} ({DETECTOR_FLAG})")
    if asked.action == LOG_ONLY != server.action:
        raise ValueError(f"{FIELD}.action: this server ends drifting answers ({FLAG} {server.action})")
    if asked.window_size != server.window_size:
        raise ValueError(
            f"{FIELD}.window_size: this server takes drift over {server.window_size} tokens ({WINDOW_FLAG})"
        )
    if asked.variance_threshold > server.variance_threshold:
        raise ValueError(
            f"{FIELD}.variance_threshold must be at most {server.variance_threshold}, the server's {THRESHOLD_FLAG}"
        )
