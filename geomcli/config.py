"""Settings: flag > environment > nearest geom.toml > default. Where things live on this machine."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import platformdirs

from geomcli.errors import UsageError

APP = "geom"
DEFAULT_PORT = 30000


SIGNALS = ("zone", "entropy", "drift", "influence", "off")


class Tui(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[tui]` table. keys: action -> key, or keys with commas between; signal: what tokens are coloured by."""

    theme: str = ""
    signal: str = SIGNALS[0]
    keys: dict[str, str] = {}

    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise ValueError(f"signal must be one of {', '.join(SIGNALS)}, got {self.signal!r}")
        for action, key in self.keys.items():
            if not all(_KEY.fullmatch(part.strip()) for part in key.split(",")):
                raise ValueError(f"keys: {action} = {key!r} is no key; write it like 'ctrl+s', 'f2' or 'p,space'")

    def check(self, *, actions: Collection[str], themes: Collection[str]) -> None:
        """UsageError naming the first action or theme that the app does not have, and the nearest that it has."""
        for action in self.keys:
            if action not in actions:
                raise UsageError(f"geom.toml, [tui.keys]: there is no action {action!r}{_nearest(action, actions)}.")
        if self.theme and self.theme not in themes:
            raise UsageError(f"geom.toml, [tui]: there is no theme {self.theme!r}{_nearest(self.theme, themes)}.")


# A key as Textual names it: modifiers, then a name or one character; a comma is called comma.
_KEY = re.compile(r"(?:(?:ctrl|shift|alt|super|hyper|meta)\+)*(?:[a-z0-9_]+|[^\s,])", re.IGNORECASE)


def _nearest(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}" if near else f"; known: {', '.join(sorted(known))}"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_url: str = f"http://127.0.0.1:{DEFAULT_PORT}"
    api_key: str = ""
    attention_key: str = ""
    db: str = ""
    discovery: str = ""
    tui: Tui = Tui()

    @property
    def db_path(self) -> Path:
        return _db_path(self.db)


ATTENTION_KEY_VARIABLE = "GEOM_ATTENTION_KEY"
_ENVIRONMENT = {
    "base_url": ("GEOM_BASE_URL", "OPENAI_BASE_URL"),
    "api_key": ("GEOM_API_KEY",),
    "attention_key": (ATTENTION_KEY_VARIABLE,),
    "db": ("GEOM_DB",),
    "discovery": ("GEOM_DISCOVERY",),
}


def _db_path(text: str) -> Path:
    # os.path leaves the `~name` of a user that does not exist as it is; pathlib raises.
    return Path(os.path.expanduser(text)) if text else data_dir() / "traces.db"


def data_dir() -> Path:
    return platformdirs.user_data_path(APP)


def cache_dir() -> Path:
    return platformdirs.user_cache_path(APP)


def state_dir() -> Path:
    return platformdirs.user_state_path(APP)


def config_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """GEOM_CONFIG, else the nearest geom.toml upwards, else the user's; None when there is none."""
    if named := environment.get("GEOM_CONFIG"):
        return Path(named)
    here = Path.cwd()
    candidates = [folder / "geom.toml" for folder in (here, *here.parents)]
    candidates.append(platformdirs.user_config_path(APP) / "config.toml")
    return next((path for path in candidates if path.is_file()), None)


def load(environment: Mapping[str, str] = os.environ, **flags: str | None) -> Settings:
    """Resolved settings; `flags` are the command line's, None where not given. UsageError names a bad key or file."""
    values, in_file, path = _merged(environment, flags)
    settings = msgspec.convert(values, Settings)
    base = _checked_url(settings.base_url)
    of_file = path if in_file.get("base_url") == values.get("base_url") is not None else None
    for name in ("api_key", "attention_key"):
        key, (variable,) = getattr(settings, name), _ENVIRONMENT[name]
        if not key.isascii():
            raise UsageError("the API key has characters that no key can have.", f"{variable}=… with plain letters")
        if key and name not in in_file and of_file is not None and not is_loopback(base):
            # A file that came with a folder must not be able to send the user's key to a server of its own choice.
            raise UsageError(f"{of_file} names the server {base}, but the key is yours.", f"geom … --base-url {base}")
    return msgspec.structs.replace(settings, base_url=base)


def store_path(environment: Mapping[str, str] = os.environ, *, db: str | None = None) -> Path:
    """Where the traces are; what is said about a server is not looked at."""
    values, _, _ = _merged(environment, {"db": db})
    return _db_path(values.get("db", ""))


def discovery_path(store: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Where `geom discover` keeps the artifacts of a store: beside it, unless they have a place of their own."""
    values, _, _ = _merged(environment, {})
    named = values.get("discovery", "")
    return Path(os.path.expanduser(named)) if named else store.parent / "discovery"


def _merged(
    environment: Mapping[str, str], flags: Mapping[str, str | None]
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """The values that are set anywhere, those of the file alone, and the file."""
    values: dict[str, Any] = {}
    path = config_file(environment)
    if path is not None:
        try:
            values = _with_dotted_keys(tomllib.loads(path.read_text(encoding="utf-8")))
            msgspec.convert(values, Settings)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}.", "unset GEOM_CONFIG, or name a file that exists") from None
        except UnicodeDecodeError:
            raise UsageError(f"{path}: it is not UTF-8 text.") from None
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise UsageError(f"{path}: {error}.") from None
    in_file = dict(values)
    for name, variables in _ENVIRONMENT.items():
        found = next((environment[v] for v in variables if environment.get(v)), None)
        if found:
            values[name] = found
    values.update({name: value for name, value in flags.items() if value is not None})
    return values, in_file, path


def _with_dotted_keys(values: dict[str, Any]) -> dict[str, Any]:
    """TOML reads `token.pin = "p"` as a table in a table; an action's name has the dot in it."""

    def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, value in table.items():
            made |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return made

    tui = values.get("tui")
    if not isinstance(tui, dict) or not isinstance(tui.get("keys"), dict):
        return values
    return {**values, "tui": {**tui, "keys": flat(tui["keys"])}}


def _checked_url(text: str) -> str:
    # The OpenAI SDK's variable ends in /v1; ours names the server.
    base = text.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"the base URL must start with http:// or https://, got {text!r}.")
    try:
        parts = urlsplit(base)
        usable = bool(parts.hostname) and parts.port != 0 and base.isascii()
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"the base URL must be like http://host:30000, got {text!r}.")
    return base


def is_loopback(base_url: str) -> bool:
    """Whether a URL names this machine; then no proxy of the environment belongs in between."""
    host = urlsplit(base_url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
