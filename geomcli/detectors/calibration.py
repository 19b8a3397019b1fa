"""Calibration of a detector for one model, as a file: one npz of plain arrays, checked when it is read."""

from __future__ import annotations

import hashlib
import io
import re
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli import trace_files
from geomcli.detectors.observations import Floats
from geomcli.errors import GeomError

FORMAT, VERSION = "geom-detector", 1
ANSWER, THOUSAND = "answer", "1000 tokens"
MAKE = "geom calibrate ANSWERS.jsonl --detector NAME --out FILE"
_WEIGHTS = ("features", "mean", "scale", "weights", "bias", "slope", "offset", "prior", "window")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, eq=False)
class Stack:
    """What training found. features [m]: names of the summaries; mean, scale, weights [m], bias: of the regression on
    standardised summaries; slope, offset: Platt's; prior: share of wrong answers it was fitted on, in (0, 1); window:
    tokens of the recent mean.
    """

    features: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    bias: float
    slope: float
    offset: float
    prior: float
    window: int

    def __post_init__(self) -> None:
        for name in ("mean", "scale", "weights"):
            values = getattr(self, name)
            if values.shape != (len(self.features),):
                raise ValueError(f"{name} has shape {values.shape}, not {(len(self.features),)}")
            if not np.isfinite(values).all():
                raise ValueError(f"{name} has a value that is no number")
        if (self.scale <= 0).any():
            raise ValueError("scale has a value that is not above 0")
        for name in ("bias", "slope", "offset"):
            if not np.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is no number")
        if not 0 < self.prior < 1:
            raise ValueError(f"prior must be above 0 and below 1, got {self.prior}")
        if self.window < 1:
            raise ValueError(f"window must be >= 1, got {self.window}")


class About(msgspec.Struct, frozen=True, kw_only=True):
    """model, detector; settings: of the detector; layers: ids of the captured ones that it sees, and how many heads of
    each, or with 0 heads the one whose links it sees; none where it sees no attention; threshold: score that
    `consecutive` tokens in a row must reach; false_alarms for each `per`, on n clean answers; created: epoch ms;
    trained_on: a sentence.
    """

    model: str
    detector: str
    settings: dict[str, float] = {}
    layers: tuple[int, ...] = ()
    heads: int = 0
    threshold: float
    consecutive: int = 1
    false_alarms: float
    per: str = ANSWER
    n: int
    created: int = 0
    trained_on: str = ""

    def __post_init__(self) -> None:
        if not np.isfinite(self.threshold):
            raise ValueError("threshold is no number")
        if not 0 < self.false_alarms < np.inf:
            raise ValueError(f"false_alarms must be above 0, got {self.false_alarms}")
        if self.per not in (ANSWER, THOUSAND):
            raise ValueError(f"per must be one of {ANSWER}, {THOUSAND}, got {self.per!r}")
        if self.consecutive < 1 or self.n < 1 or self.heads < 0:
            raise ValueError("consecutive and n must be >= 1, heads >= 0")
        if list(self.layers) != sorted(set(self.layers)):
            raise ValueError(f"layers must rise, got {self.layers}")


@dataclass(frozen=True, eq=False)
class Calibration:
    """stack: None where the detector has no weights; digest: SHA-256 of the file that it was read from."""

    about: About
    stack: Stack | None = None
    digest: str = ""

    def check(self, model: str, layers: tuple[int, ...] | None = None, heads: int | None = None) -> None:
        """GeomError where it was made for another model, or for other captured layers or so many heads than these."""
        about = self.about
        if about.model != model:
            raise GeomError(f"the calibration of {about.detector} is for {about.model}, not for {model}.", MAKE)
        if layers is not None and not about.heads:
            layers = layers[-1:]
        if layers is not None and about.layers and about.layers != layers:
            raise GeomError(
                f"the calibration of {about.detector} is for the layers {_listed(about.layers)}, and "
                f"{_listed(layers)} are captured.",
                f"--attention-capture-layers {_listed(about.layers)}",
            )
        if heads is not None and about.heads not in (0, heads):
            raise GeomError(
                f"the calibration of {about.detector} is for {about.heads} heads of a layer, and {heads} are captured.",
                "geom calibrate answers that were captured without attention_capture_head_ids",
            )


def default_path(model: str, detector: str) -> Path:
    """Where the user's calibrations are kept."""
    from geomcli import config  # what a server loads needs none of it

    return config.data_dir() / "detectors" / f"{_UNSAFE.sub('_', model)}-{detector}.npz"


def save(calibration: Calibration, path: Path) -> None:
    """Write or replace the file; OSError where that cannot be done."""
    about = msgspec.structs.replace(calibration.about, created=calibration.about.created or int(time.time() * 1000))
    arrays: dict[str, NDArray[Any]] = {
        "format": np.array(FORMAT),
        "version": np.array(VERSION),
        "about": np.array(msgspec.json.encode(about).decode()),
    }
    if calibration.stack is not None:
        arrays |= {name: np.asarray(getattr(calibration.stack, name)) for name in _WEIGHTS}
    path.parent.mkdir(parents=True, exist_ok=True)
    with trace_files.replaced(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def load(path: Path) -> Calibration:
    """The calibration in a file; GeomError says what is wrong with it."""
    try:
        content = path.read_bytes()
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError:
        raise GeomError(f"there is no calibration at {path}.", MAKE) from None
    except IsADirectoryError:
        raise GeomError(f"{path} is a folder and no calibration.", MAKE) from None
    except (ValueError, EOFError, KeyError, OSError, zipfile.BadZipFile, MemoryError) as error:
        raise GeomError(f"{path} cannot be read as a calibration: {error}.", MAKE) from None
    except TypeError:  # one array, not an archive of them
        raise GeomError(f"{path} is one array and no calibration.", MAKE) from None
    try:
        return replace(_checked(path, arrays), digest=hashlib.sha256(content).hexdigest())
    except (ValueError, KeyError, TypeError) as error:  # msgspec's errors are ValueErrors
        said = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise GeomError(f"{path}: {said}.", MAKE) from None


def _checked(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Calibration:
    if "format" not in arrays or str(arrays["format"]) != FORMAT:
        raise ValueError("it is no calibration of a detector")
    if int(arrays["version"]) != VERSION:
        raise GeomError(
            f"{path} has version {int(arrays['version'])}; this geom reads {VERSION}.", "pip install --upgrade geomcli"
        )
    about = msgspec.json.decode(str(arrays["about"]), type=About)
    if "weights" not in arrays:
        return Calibration(about)
    numbers = {name: np.asarray(arrays[name], dtype=np.float64) for name in _WEIGHTS if name != "features"}
    single = {name: float(numbers[name]) for name in ("bias", "slope", "offset", "prior")}
    features = tuple(map(str, arrays["features"].tolist()))
    return Calibration(
        about,
        Stack(features, numbers["mean"], numbers["scale"], numbers["weights"], window=int(numbers["window"]), **single),
    )


def _listed(layers: tuple[int, ...]) -> str:
    return ",".join(map(str, layers))
