"""Settings: flag over environment over file over default; a wrong file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomcli import config
from geomcli.errors import UsageError


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_precedence(tmp_path: Path) -> None:
    assert config.load({}).base_url == "http://127.0.0.1:30000"
    (tmp_path / "geom.toml").write_text('base_url = "http://file:1"\ndb = "~/x.db"\n')
    assert config.load({}).base_url == "http://file:1"
    assert config.load({}).db_path == Path.home() / "x.db"
    assert config.load({"GEOM_BASE_URL": "http://env:2/"}).base_url == "http://env:2"
    assert config.load({"GEOM_BASE_URL": "http://env:2"}, base_url="http://flag:3").base_url == "http://flag:3"


def test_the_openai_variable_is_the_fallback_and_loses_its_v1() -> None:
    assert config.load({"OPENAI_BASE_URL": "http://sdk:4/v1"}).base_url == "http://sdk:4"
    assert (
        config.load({"OPENAI_BASE_URL": "http://sdk:4/v1", "GEOM_BASE_URL": "http://env:2"}).base_url == "http://env:2"
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("base_ur = 1", "base_ur"),
        ("base_url = 3", "base_url"),
        ("base_url = ", "geom.toml"),
        ('base_url = "x"', "http://"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "geom.toml").write_text(text)
    with pytest.raises(UsageError, match=named):
        config.load({})


def test_a_named_file_must_exist() -> None:
    with pytest.raises(UsageError, match=r"missing\.toml"):
        config.load({"GEOM_CONFIG": "missing.toml"})
