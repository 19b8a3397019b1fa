"""What a firewall is to do, from flags and requests: thresholds of calibrations, and nothing without one."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomcli.detectors.calibration import About, Calibration, load, save
from geomcli.detectors.observations import HEADS, LOGITS
from geomcli.errors import GeomError
from geomcli.server_patch.firewall_options import Guard, Known, known_from, loaded, of_flags, of_request
from tests.library.made_answers import made_calibration


def file_of(folder: Path, name: str, **about: object) -> Path:
    path = folder / f"{name}-{len(list(folder.iterdir()))}.npz"
    calibration = made_calibration(name)
    if about:
        calibration = Calibration(
            About(**{**{f: getattr(calibration.about, f) for f in About.__struct_fields__}, **about})
        )
    save(calibration, path)
    return path


def test_the_threshold_is_the_calibrations(tmp_path: Path) -> None:
    path = file_of(tmp_path, "logprob")
    known = known_from([str(path)])
    assert known == (Known(str(path), load(path).digest, "logprob", 2.5, 1, (3, 7)),)
    guard = of_flags("early_stop", detector="logprob", known=known)
    assert guard == Guard("early_stop", 10, 2.5, "logprob", 1, str(path), calibrated=True, layers=(3, 7))
    assert guard.needs == {LOGITS}
    own = of_flags("early_stop", threshold=2.0, detector="logprob", known=known)
    assert own is not None
    assert (own.variance_threshold, own.calibrated) == (2.0, False)
    assert Guard("log_only", detector="heads").needs == {LOGITS, HEADS}


def test_without_a_calibration_there_is_no_threshold_and_no_weight() -> None:
    with pytest.raises(ValueError, match=r"logprob has no threshold without a calibration: geom calibrate"):
        of_flags("early_stop", detector="logprob")
    with pytest.raises(ValueError, match=r"heads has no weights without a calibration"):
        of_flags("early_stop", threshold=3.0, detector="heads")
    assert of_flags("off", detector="logprob") is None
    assert of_flags("early_stop", threshold=3.0, detector="logprob") == Guard("early_stop", 10, 3.0, "logprob")


def test_a_calibrated_compass_has_its_window_too(tmp_path: Path) -> None:
    path = file_of(tmp_path, "compass", settings={"window": 5}, threshold=0.3, layers=(), heads=0)
    known = known_from([str(path)])
    guard = of_flags("early_stop", known=known)
    assert guard is not None
    assert (guard.window_size, guard.variance_threshold, guard.consecutive, guard.calibrated) == (5, 0.3, 1, True)
    other = of_flags("early_stop", window=20, known=known)
    assert other == Guard("early_stop", 20)


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    one, two = file_of(tmp_path, "logprob"), file_of(tmp_path, "logprob")
    with pytest.raises(ValueError, match="are both of logprob"):
        known_from([str(one), str(two)])
    with pytest.raises(ValueError, match="there is no calibration at"):
        known_from([str(tmp_path / "none.npz")])
    with pytest.raises(ValueError, match="the server has no detector spectrum"):
        known_from([str(file_of(tmp_path, "logprob", detector="spectrum"))])
    known = known_from([str(one)])
    with pytest.raises(GeomError, match=r"for m, not for other"):
        loaded(known, "other", (3, 7), 4)
    with pytest.raises(GeomError, match=r"for the layers 3,7, and 29 are captured"):
        loaded(known, "m", (29,), 4)
    assert loaded(known, "m", (3, 7), 3)[known[0].path].about.threshold == 2.5
    with pytest.raises(GeomError, match=r"is for \d heads of a layer, and 99 are captured"):
        loaded(known, "m", (3, 7), 99)
    file_of(tmp_path, "logprob", threshold=9.0).rename(one)
    with pytest.raises(GeomError, match="is not the file that the server was started with"):
        loaded(known, "m", (3, 7), 3)
    one.unlink()
    with pytest.raises(GeomError, match="there is no calibration at"):
        loaded(known, "m", (3, 7), 3)


def test_a_request_chooses_among_what_the_server_has(tmp_path: Path) -> None:
    known = known_from([str(file_of(tmp_path, "logprob"))])
    guard = of_request({"attention_firewall": {"detector": "logprob"}}, None, known)
    assert guard is not None
    assert (guard.action, guard.variance_threshold, guard.calibrated) == ("early_stop", 2.5, True)
    with pytest.raises(ValueError, match=r"rauq has no threshold"):
        of_request({"attention_firewall": {"detector": "rauq"}}, None, known)
    server = of_flags("early_stop", detector="logprob", known=known)
    with pytest.raises(ValueError, match="this server watches with logprob"):
        of_request({"attention_firewall": {"detector": "compass"}}, server, known)
    with pytest.raises(ValueError, match=r"must be at most 2\.5"):
        of_request({"attention_firewall": {"threshold": 3}}, server, known)
    stricter = of_request({"attention_firewall": {"threshold": 1.5}}, server, known)
    assert stricter is not None
    assert (stricter.variance_threshold, stricter.detector) == (1.5, "logprob")
    assert of_request({"attention_firewall": True}, server, known) == server
