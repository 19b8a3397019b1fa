"""What stands in the way of a hook is said once, and by its cause."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomcli.server_patch import hooks


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "geom_broken").mkdir()
    (tmp_path / "geom_broken" / "__init__.py").write_text("")
    (tmp_path / "geom_broken" / "inner.py").write_text("raise ImportError('needs tokens>=2\\nsee above')")
    (tmp_path / "geom_broken" / "needy.py").write_text("import geom_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    return "geom_broken"


def test_an_import_that_fails_is_named_with_its_reason(broken: str) -> None:
    assert hooks.import_failure(f"{broken}.inner.Thing.run") == (
        "geom_broken.inner cannot be imported (ImportError: needs tokens>=2)"
    )
    assert "geom_is_not_there" in str(hooks.import_failure(f"{broken}.needy.Thing"))


def test_what_can_be_imported_or_does_not_exist_is_no_failure_of_an_import(broken: str) -> None:
    assert hooks.import_failure("json.decoder.JSONDecoder.decode") is None
    assert hooks.import_failure(f"{broken}.missing.Thing") is None


def test_preflight_names_the_cause_once_and_the_lost_parameter(broken: str) -> None:
    def hook(target: str, *parameters: str) -> hooks.Hook:
        return hooks.Hook(hooks.MAIN, target, hooks.AFTER, "startup:after_add_cli_args", parameters, "a test")

    with pytest.raises(hooks.HookFailure, match=r"^geom_broken.inner cannot be imported"):
        hooks.preflight([hook(f"{broken}.inner.A.b"), hook(f"{broken}.inner.C.d")])
    assert hooks.problem_with(hook("json.dumps", "obj", "nothing_like_it")) == (
        "json.dumps has no parameter nothing_like_it"
    )
