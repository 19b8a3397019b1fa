"""The commit that geom was installed from, where its installer wrote it down."""

from __future__ import annotations

from importlib.metadata import Distribution, PackageNotFoundError, distribution

import msgspec

PACKAGE = "geomcli"


class _Source(msgspec.Struct):
    commit_id: str = ""


class _DirectUrl(msgspec.Struct):
    vcs_info: _Source = msgspec.field(default_factory=_Source)


def commit(of: Distribution | None = None) -> str:
    """Of PEP 610's direct_url.json, as `pip install git+https://…` leaves it; "" for an installation without one."""
    try:
        text = (of or distribution(PACKAGE)).read_text("direct_url.json")
        return msgspec.json.decode(text or "{}", type=_DirectUrl).vcs_info.commit_id
    except (PackageNotFoundError, msgspec.DecodeError):
        return ""
