"""What one detector's alarms do on answers it has not seen: found errors, delays, false alarms, tokens saved."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from geomcli.detectors.conformal import answers_needed, level, per_answer
from geomcli.errors import GeomError
from geomcli.evaluation.dataset import Dataset, Floats, Ints
from geomcli.evaluation.metrics import Weights, quartiles, share_interval

PER_ANSWER, PER_TOKEN = "answer", "token"


class _Seen(NamedTuple):
    """One answer. located: wrong from a known onset on; found: alarmed from there on, not before; delay: from the onset
    to that alarm; saved: the share of its tokens after it; clean: tokens before the onset, all of a right answer.
    """

    right: bool
    located: bool
    alarmed: bool
    found: bool
    delay: int
    saved: float
    clean: int
    clean_alarms: int


class Alarms:
    """`add` each fold, then `summary`."""

    def __init__(self) -> None:
        self.refused: str | None = None
        self.seen: list[_Seen] = []

    def add(self, data: Dataset, scores: Floats, calibrating: Ints, test: Ints, per: str, rate: float) -> None:
        clean = [scores[data.starts[row] : data.starts[row + 1]] for row in calibrating if data.outcome[row] == "right"]
        if per == PER_ANSWER:
            values = [level(part) for part in clean]
        else:
            values = [score for part in clean for score in part.tolist() if math.isfinite(score)]
        if len(values) < answers_needed(rate):
            self.refused = f"needs {answers_needed(rate)} clean {per}s to calibrate on, has {len(values)}"
            return
        try:
            threshold = per_answer(values, rate)
        except GeomError:
            scored = int(np.isfinite(values).sum())
            self.refused = f"{scored} of {len(values)} clean answers are long enough for a score"
            return
        for row in test:
            alarms = np.flatnonzero(scores[data.starts[row] : data.starts[row + 1]] >= threshold)
            self.seen.append(_seen(str(data.outcome[row]), int(data.onset[row]), int(data.length[row]), alarms))

    def summary(self, groups: np.ndarray[Any, np.dtype[np.str_]], weights: Weights) -> dict[str, Any]:
        """groups [n], weights [B, n]: of the tested answers in the order of the folds, the same for all detectors."""
        if self.refused is not None:
            return {"refused": self.refused}
        columns = {
            name: np.array(column) for name, column in zip(_Seen._fields, zip(*self.seen, strict=True), strict=True)
        }
        right, located, found = columns["right"], columns["located"], columns["found"]
        early = columns["alarmed"] & ~found
        clean = int(columns["clean"].sum())
        spread = quartiles(columns["delay"][found].tolist())

        def share(values: Floats, counted: np.ndarray[Any, np.dtype[np.bool_]]) -> tuple[float, tuple[float, float]]:
            mean = float(values[counted].mean()) if counted.any() else math.nan
            return mean, share_interval(values.astype(np.float64), counted, groups, weights)

        recall, recall_interval = share(found, located)
        false_alarms, false_interval = share(columns["alarmed"], right)
        saved, saved_interval = share(columns["saved"], located)
        return {
            "recall": recall,
            "recall_interval": recall_interval,
            "too_early": float(early[located].mean()) if located.any() else math.nan,
            "delay_median": spread[1] if spread else None,
            "delay_quartiles": (spread[0], spread[2]) if spread else None,
            "tokens_saved": saved,
            "tokens_saved_interval": saved_interval,
            "false_alarms_per_answer": false_alarms,
            "false_alarms_interval": false_interval,
            "alarms_per_1k_clean_tokens": 1000 * int(columns["clean_alarms"].sum()) / clean if clean else math.nan,
            "answers_with_onset": int(located.sum()),
            "clean_answers": int(right.sum()),
        }


def _seen(outcome: str, onset: int, length: int, alarms: Ints) -> _Seen:
    if outcome == "right":
        return _Seen(True, False, len(alarms) > 0, False, -1, 0.0, length, len(alarms))
    if outcome != "wrong" or onset < 0:
        return _Seen(False, False, False, False, -1, 0.0, 0, 0)
    found = len(alarms) > 0 and int(alarms[0]) >= onset
    delay = int(alarms[0]) - onset if found else -1
    saved = (length - 1 - int(alarms[0])) / length if found else 0.0
    return _Seen(False, True, len(alarms) > 0, found, delay, saved, onset, int((alarms < onset).sum()))
