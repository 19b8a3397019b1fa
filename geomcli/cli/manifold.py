"""The discovery that a command classifies against: the one beside the store, if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geomcli.cli import output

if TYPE_CHECKING:
    from geomcli.discovery.reading import TraceReading
    from geomcli.trace import Trace

_MOST = 3  # clusters


def reading_of(trace: Trace, store: Path) -> TraceReading | None:
    """None without a discovery, and for a trace of another model; a damaged one is named on stderr."""
    from geomcli import config
    from geomcli.errors import GeomError

    root = config.discovery_path(store)
    if not root.exists():
        return None
    from geomcli.discovery.artifacts import load
    from geomcli.discovery.classification import Classifier
    from geomcli.discovery.reading import read

    try:
        return read(trace, Classifier(load(root)))
    except GeomError as error:
        output.narrator().print(output.marked(f"not classified: {error}"))
        return None


def line_of(reading: TraceReading) -> str:
    """Like "A syntax_floor, local_attention 62%  off 18%  (of 20,000 fingerprints, confidence 0.93)"; "uncalibrated"
    where the confidence rests on nothing. Of the mean of the answer, where requests were learned.
    """
    from geomcli.display import cluster_name

    parts = []
    for share in reading.shares[:_MOST]:
        _, style = output.ZONE_STYLES.get(share.name.split(",")[0], ("·", "default"))
        parts.append(f"[{style}]{cluster_name(share.cluster)} {output.marked(share.name)}[/] {share.share:.0%}")
    if reading.on_manifold < 1:
        parts.append(f"off {1 - reading.on_manifold:.0%}")
    sure = f"confidence {reading.confidence:.2f}" if reading.calibrated else "uncalibrated"
    if reading.unit == "request":
        return f"{'  '.join(parts)}  [dim](its mean, of {reading.n:,} requests, {sure})[/]"
    return f"{'  '.join(parts)}  [dim](of {reading.n:,} fingerprints, {sure})[/]"
