"""Settings: flag > environment > nearest geom.toml > default. Where things live on this machine."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import platformdirs

from geomcli.errors import UsageError

APP = "geom"
DEFAULT_PORT = 30000


class TuiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[tui]`: the theme of `geom tui`, and keys by action id (f1 in the app shows the ids)."""

    theme: str = ""
    keys: dict[str, str] = {}


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    base_url: str = f"http://127.0.0.1:{DEFAULT_PORT}"
    api_key: str = ""
    attention_key: str = ""
    db: str = ""
    tui: TuiSettings = TuiSettings()

    @property
    def db_path(self) -> Path:
        return _db_path(self.db)


ATTENTION_KEY_VARIABLE = "GEOM_ATTENTION_KEY"
_ENVIRONMENT = {
    "base_url": ("GEOM_BASE_URL", "OPENAI_BASE_URL"),
    "api_key": ("GEOM_API_KEY",),
    "attention_key": (ATTENTION_KEY_VARIABLE,),
    "db": ("GEOM_DB",),
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


def _merged(
    environment: Mapping[str, str], flags: Mapping[str, str | None]
) -> tuple[dict[str, Any], dict[str, Any], Path | None]:
    """The values that are set anywhere, those of the file alone, and the file."""
    values: dict[str, Any] = {}
    path = config_file(environment)
    if path is not None:
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
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
