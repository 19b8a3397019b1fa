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


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "geom.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"geom\.toml: it is not UTF-8"):
        config.load({})


@pytest.mark.parametrize("url", ["localhost:1", "http://", "http://h:x", "http://h:99999", "http://h:0", "http://[h"])
def test_a_base_url_that_cannot_be_one(url: str) -> None:
    with pytest.raises(UsageError, match="base URL must"):
        config.load({}, base_url=url)


KEYS = pytest.mark.parametrize(
    ("variable", "name"), [("GEOM_API_KEY", "api_key"), ("GEOM_ATTENTION_KEY", "attention_key")]
)


@KEYS
def test_a_key_that_cannot_be_one(variable: str, name: str) -> None:
    with pytest.raises(UsageError, match="API key") as refused:
        config.load({variable: "schlüssel"})
    assert variable in str(refused.value)
    assert getattr(config.load({variable: "environment"}, **{name: "flag"}), name) == "flag"


@KEYS
def test_a_file_of_a_folder_does_not_get_the_users_key(tmp_path: Path, variable: str, name: str) -> None:
    (tmp_path / "geom.toml").write_text('base_url = "http://elsewhere:1"\n')
    with pytest.raises(UsageError, match="the key is yours"):
        config.load({variable: "secret"})
    assert getattr(config.load({variable: "secret"}, base_url="http://mine:1"), name) == "secret"
    (tmp_path / "geom.toml").write_text('base_url = "http://127.0.0.1:1"\n')
    assert getattr(config.load({variable: "secret"}), name) == "secret"
    (tmp_path / "geom.toml").write_text(f'base_url = "http://elsewhere:1"\n{name} = "its own"\n')
    assert getattr(config.load({}), name) == "its own"


@pytest.mark.parametrize(
    ("url", "loopback"),
    [("http://localhost:1", True), ("http://127.3.2.1", True), ("http://[::1]:2", True), ("http://10.0.0.1", False),
     ("http://localhost.example", False)],
)  # fmt: skip
def test_loopback(url: str, loopback: bool) -> None:
    assert config.is_loopback(url) is loopback


def test_the_store_is_found_without_a_server(tmp_path: Path) -> None:
    odd = {"OPENAI_BASE_URL": "nonsense", "GEOM_DB": "a.db"}
    assert config.store_path(odd) == Path("a.db")
    assert config.store_path(odd, db="~/b.db") == Path.home() / "b.db"
    assert config.store_path({}) == config.data_dir() / "traces.db"
    assert config.store_path({"GEOM_DB": "~no-such-user/x.db"}) == Path("~no-such-user/x.db")
    assert config.load({"GEOM_DB": "~no-such-user/x.db"}).db_path == Path("~no-such-user/x.db")


def test_a_named_file_must_exist() -> None:
    with pytest.raises(UsageError, match=r"missing\.toml"):
        config.load({"GEOM_CONFIG": "missing.toml"})


def test_the_table_of_the_terminal_app(tmp_path: Path) -> None:
    assert config.load({}).tui == config.Tui(theme="", signal="zone", keys={})
    (tmp_path / "geom.toml").write_text(
        'base_url = "http://file:1"\n[tui]\ntheme = "nord"\nsignal = "drift"\n'
        '[tui.keys]\ntoken.pin = "P"\n"view.freeze" = "ctrl+space, f7"\nfind = "/"\n'
    )
    found = config.load({"GEOM_BASE_URL": "http://env:2"})
    assert found.tui.keys == {"token.pin": "P", "view.freeze": "ctrl+space, f7", "find": "/"}
    assert (found.tui.theme, found.tui.signal, found.base_url) == ("nord", "drift", "http://env:2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('themee = "x"', r"geom\.toml: .*unknown field `themee` - at `\$\.tui`"),
        ("theme = 3", r"Expected `str`, got `int` - at `\$\.tui\.theme`"),
        ('signal = "colour"', "signal must be one of zone, entropy, drift, influence, off, got 'colour'"),
        ("keys = 3", r"at `\$\.tui\.keys`"),
        ('keys.quit = ["q"]', r"at `\$\.tui\.keys"),
        ('keys.quit = ""', "quit = '' is no key"),
        ('keys.quit = "ctrl+"', r"quit = 'ctrl\+' is no key"),
        ('keys.quit = "ctrl q"', "quit = 'ctrl q' is no key"),
        ('keys.quit = "q,"', "quit = 'q,' is no key"),
    ],
)
def test_a_wrong_table_of_the_terminal_app_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "geom.toml").write_text(f"[tui]\n{text}\n")
    for read in (lambda: config.load({}), lambda: config.store_path({})):
        with pytest.raises(UsageError, match=said):
            read()


def test_actions_and_themes_are_those_that_the_app_has() -> None:
    known = {"actions": ["token.pin", "quit"], "themes": ["nord", "gruvbox"]}
    config.Tui(theme="nord", keys={"quit": "q"}).check(**known)
    config.Tui().check(**known)
    with pytest.raises(UsageError, match=r"no action 'token\.pinn'; did you mean token\.pin\."):
        config.Tui(keys={"token.pinn": "p"}).check(**known)
    with pytest.raises(UsageError, match=r"no action 'zzz'; known: quit, token\.pin\."):
        config.Tui(keys={"zzz": "p"}).check(**known)
    with pytest.raises(UsageError, match="no theme 'nort'; did you mean nord"):
        config.Tui(theme="nort").check(**known)
