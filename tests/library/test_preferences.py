"""Preferences: applied once or always, kept over restarts, and no file of any content breaks the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from geomcli import preferences
from geomcli.preferences import Preferences, applied, load, save
from geomcli.recommendation import Advice

CALM = Advice(0.3, 0.9, "fingerprint")
WILD = Advice(0.8, None, "raw")


def test_advice_for_the_next_run_is_used_once() -> None:
    kept = Preferences().apply_to_next(CALM)
    taken, after = kept.take(WILD)
    assert taken == CALM
    assert after.take(WILD) == (None, Preferences())


def test_advice_for_every_run() -> None:
    always = Preferences().apply_always(True)
    assert always.take(WILD) == (WILD, always)
    assert always.take(None) == (None, always)
    assert always.apply_to_next(CALM).take(WILD) == (CALM, always)
    assert always.apply_always(False) == Preferences()


def test_the_newest_advice_is_there_after_a_restart() -> None:
    always = Preferences().apply_always(True).seen(CALM)
    assert always.take(None) == (CALM, always)
    assert always.take(WILD) == (WILD, always)
    assert always.seen(None) == always
    assert always.apply_always(False) == Preferences()
    assert Preferences().seen(CALM) == Preferences()


def test_fields_of_a_request() -> None:
    asked = {"temperature": 0.0, "max_tokens": 5, "return_attention_tokens": True, "attention_fingerprint_mode": False,
             "top_k_attention": 4, "attention_derotate": True, "attention_prompt_tokens": True}  # fmt: skip
    assert applied(asked, None) == asked
    assert applied(asked, CALM) == {
        "temperature": 0.3, "top_p": 0.9, "max_tokens": 5, "return_attention_tokens": True,
        "attention_fingerprint_mode": True,
    }  # fmt: skip
    assert applied(asked, WILD) == {**asked, "temperature": 0.8}
    sketch = applied(asked, Advice(None, None, "sketch"))
    assert sketch["attention_sketch_mode"] is True
    assert "attention_fingerprint_mode" not in sketch
    # A request that captures nothing, or must not have more than fingerprints, keeps that.
    assert applied({"max_tokens": 5}, WILD) == {"max_tokens": 5, "temperature": 0.8}
    private = {"return_attention_tokens": True, "attention_fingerprint_only": True}
    assert applied(private, Advice(None, None, "raw")) == private


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.booleans(),
    st.none() | st.builds(Advice, st.none() | st.floats(0, 2), st.none() | st.floats(0, 1),
                          st.sampled_from(["raw", "sketch", "fingerprint"])),
)  # fmt: skip
def test_what_is_kept_is_read(tmp_path: Path, always: bool, advice: Advice | None) -> None:
    path = tmp_path / "deep" / "router.json"
    kept = Preferences(always, advice).seen(advice)
    save(kept, path)
    assert load(path) == kept
    assert [p.name for p in path.parent.iterdir()] == ["router.json"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", Preferences()),
        (b"\xff\xfe", Preferences()),
        (b"[]", Preferences()),
        (b"[" * 100_000, Preferences()),
        (b'{"always": true}', Preferences(always=True)),
        (b'{"always": "yes"}', Preferences()),
        (b'{"always": true, "next_run": {"temperature": "hot"}}', Preferences(always=True)),
        (b'{"version": 9, "next_run": {"temperature": 1, "top_p": null, "capture": "raw", "x": 1}, "y": 2}',
         Preferences(next_run=Advice(1.0, None, "raw"))),
    ],
)  # fmt: skip
def test_a_file_of_any_content_is_read_as_far_as_it_goes(tmp_path: Path, content: bytes, found: Preferences) -> None:
    path = tmp_path / "router.json"
    path.write_bytes(content)
    assert load(path) == found


def test_they_live_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load() == Preferences()
    save(Preferences(always=True))
    assert (tmp_path / "geom" / "router.json").is_file()
    assert preferences.preferences_file() == tmp_path / "geom" / "router.json"
    assert load().always
