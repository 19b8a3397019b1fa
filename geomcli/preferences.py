"""What a user wants applied of the recommendations: to the next run, or to every run. Kept in the state folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from geomcli import config
from geomcli.recommendation import Advice

_VERSION = 1


class Preferences(msgspec.Struct, frozen=True):
    """always: every run takes the newest advice. next_run: advice for one run, kept until that run starts.

    latest: the newest advice there was while `always` is on, for the first run after a restart.
    """

    always: bool = False
    next_run: Advice | None = None
    latest: Advice | None = None

    def apply_to_next(self, advice: Advice) -> Preferences:
        return msgspec.structs.replace(self, next_run=advice)

    def apply_always(self, on: bool) -> Preferences:
        return msgspec.structs.replace(self, always=on, latest=self.latest if on else None)

    def seen(self, latest: Advice | None) -> Preferences:
        """Note newer advice, if every run is to take it."""
        return msgspec.structs.replace(self, latest=latest) if self.always and latest is not None else self

    def take(self, latest: Advice | None) -> tuple[Advice | None, Preferences]:
        """What the run that starts now gets, and the preferences after it: advice for one run is used up."""
        if self.next_run is not None:
            return self.next_run, msgspec.structs.replace(self, next_run=None)
        return (latest or self.latest if self.always else None), self


def applied(fields: Mapping[str, Any], advice: Advice | None) -> dict[str, Any]:
    """Request fields with the advice in them; what the advice leaves open stays as it is."""
    made = dict(fields)
    if advice is None:
        return made
    for name in ("temperature", "top_p"):
        if (value := getattr(advice, name)) is not None:
            made[name] = value
    if made.get("return_attention_tokens") and not made.get("attention_fingerprint_only"):
        for name in ("attention_fingerprint_mode", "attention_sketch_mode"):
            made.pop(name, None)
        if advice.capture == "sketch":
            made["attention_sketch_mode"] = True
        else:
            made["attention_fingerprint_mode"] = advice.capture == "fingerprint"
        if advice.capture != "raw":
            for name in ("top_k_attention", "attention_prompt_tokens", "attention_derotate"):
                made.pop(name, None)
    return made


def preferences_file() -> Path:
    return config.state_dir() / "router.json"


def load(path: Path | None = None) -> Preferences:
    """The kept preferences; the defaults where there is no file, and for every part of it that cannot be read."""
    try:
        document = msgspec.json.decode((path or preferences_file()).read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError):
        return Preferences()
    found: dict[str, Advice | None] = {}
    for name in ("next_run", "latest"):
        with contextlib.suppress(msgspec.ValidationError):
            found[name] = msgspec.convert(document.get(name), Advice | None)
    return Preferences(always=document.get("always") is True, **found)


def save(preferences: Preferences, path: Path | None = None) -> None:
    """Keep them; a reader sees the old file or the new one. OSError when the folder cannot be written."""
    target = path or preferences_file()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    document = {"version": _VERSION, **msgspec.to_builtins(preferences)}
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")
    partial.replace(target)
