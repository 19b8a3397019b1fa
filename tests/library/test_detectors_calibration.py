"""Calibration files: written and read alike, and refused in a sentence where something is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from geomcli.detectors import registry
from geomcli.detectors.calibration import default_path, load, save
from geomcli.detectors.observations import replay
from geomcli.errors import GeomError
from tests.library.made_answers import made_calibration, observations


@pytest.mark.parametrize("name", sorted(registry.DETECTORS))
def test_what_is_read_scores_as_what_was_written(name: str, tmp_path: Path) -> None:
    calibration, path = made_calibration(name), tmp_path / "new" / "c.npz"
    save(calibration, path)
    read = load(path)
    assert read.about == calibration.about
    answer = observations(30)
    np.testing.assert_array_equal(
        replay(registry.create(name, None, read), answer), replay(registry.create(name, None, calibration), answer)
    )


def test_a_date_is_written(tmp_path: Path) -> None:
    calibration = made_calibration("logprob")
    undated = msgspec.structs.replace(calibration.about, created=0)
    save(type(calibration)(undated), tmp_path / "c.npz")
    assert load(tmp_path / "c.npz").about.created > 1_700_000_000_000


def changed(**to: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        arrays.update({name: np.asarray(value) for name, value in to.items()})

    return change


def about(**to: Any) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        document = msgspec.json.decode(str(arrays["about"]))
        arrays["about"] = np.array(msgspec.json.encode({**document, **to}).decode())

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed(format="other"), "no calibration of a detector"),
        (changed(version=2), "version 2; this geom reads 1"),
        (changed(weights=[1.0, 2.0]), r"weights has shape \(2,\), not"),
        (changed(prior=1.0), "prior must be above 0 and below 1"),
        (changed(slope=np.nan), "slope is no number"),
        (changed(about="{"), "truncated"),
        (about(threshold="high"), r"Expected `float`, got `str` - at `\$\.threshold`"),
        (about(per="day"), "per must be one of answer, 1000 tokens"),
        (about(layers=[7, 3]), "layers must rise"),
        (lambda arrays: arrays.pop("scale"), "it has no 'scale'"),
        (lambda arrays: arrays["mean"].__setitem__(0, np.inf), "mean has a value that is no number"),
        (lambda arrays: arrays["scale"].__setitem__(0, 0.0), "scale has a value that is not above 0"),
        (lambda arrays: arrays.update(bias=np.array({"a": 1}, dtype=object)), "cannot be read"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(change: Callable[[dict[str, Any]], Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    save(made_calibration("heads"), path)
    with np.load(path) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    change(arrays)
    np.savez(path, **arrays)
    with pytest.raises(GeomError, match=said):
        load(path)


def test_what_is_no_such_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(GeomError, match="there is no calibration at"):
        load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("text.npz", "one.npy", "."):
        with pytest.raises(GeomError, match=r"no calibration|cannot be read"):
            load(tmp_path / name)


def test_another_model_or_other_layers_are_refused() -> None:
    calibration = made_calibration("heads")
    calibration.check("m", (3, 7))
    with pytest.raises(GeomError, match="is for m, not for n"):
        calibration.check("n")
    with pytest.raises(GeomError, match="for the layers 3,7, and 7 are captured") as refused:
        calibration.check("m", (7,))
    assert refused.value.mend == "--attention-capture-layers 3,7"


def test_features_of_another_version_are_refused() -> None:
    calibration = made_calibration("heads")
    assert calibration.stack is not None
    object.__setattr__(calibration.stack, "features", tuple(reversed(calibration.stack.features)))
    with pytest.raises(GeomError, match="other features"):
        registry.create("heads", None, calibration)


def test_names_of_models_make_names_of_files() -> None:
    assert default_path("Qwen/Qwen3-4B", "heads").name == "Qwen_Qwen3-4B-heads.npz"
