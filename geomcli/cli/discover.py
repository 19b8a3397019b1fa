"""`geom discover`: learn the manifold of stored fingerprints and write its artifacts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from geomcli.cli import opening, output
from geomcli.errors import GeomError, UsageError
from geomcli.fingerprint import FINGERPRINT_SIZE

if TYPE_CHECKING:
    from rich.console import Console

    from geomcli.discovery.pipeline import Discovery

Origin = Literal["auto", "traffic", "traces"]
Unit = Literal["token", "request"]

# HDBSCAN's time grows with the square of the points: a quarter of an hour at as many.
_MOST_POINTS = 100_000
_LARGEST_SEED = 2**32 - 1  # of NumPy's generator, which UMAP takes
_SAID = {
    "reduction": "principal components",
    "map": "map",
    "clusters": "HDBSCAN on the standardised fingerprints",
    "names": "zones and traits",
    "calibration": "calibration on held-out halves",
}


def discover(
    db: opening.Db = None,
    output_dir: Annotated[
        str | None, typer.Option("--output-dir", "-o", help="Folder of the artifacts; beside the store if left out.")
    ] = None,
    min_samples: Annotated[int, typer.Option(help="Fewer fingerprints than this are refused.", min=2)] = 100,
    model: Annotated[str | None, typer.Option(help="Whose fingerprints; the model with the most if left out.")] = None,
    origin: Annotated[
        Origin, typer.Option("--from", help="The sidecar's traffic, stored traces, or whichever is there.")
    ] = "auto",
    per: Annotated[Unit, typer.Option(help="One point a token, or one a request: the mean of its tokens.")] = "token",
    umap: Annotated[bool, typer.Option("--umap/--no-umap", help="Without: the map is principal components.")] = True,
    min_cluster_size: Annotated[
        int | None, typer.Option(help="Members of a cluster; a fortieth of the points if left out.", min=2)
    ] = None,
    most: Annotated[
        int,
        typer.Option("--max-points", help="Points to learn from, spread over the store.", min=2, max=_MOST_POINTS),
    ] = 20_000,
    seed: Annotated[int, typer.Option(help="Of the map.", min=0, max=_LARGEST_SEED)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest as JSON.")] = False,
) -> None:
    """Learn the manifold: clusters of fingerprints, what they mean, a map, and how sure a classification is.

    \b
    Examples:
      geom discover
      geom discover --db ./attention_data.db --output-dir ./discovery_artifacts --min-samples 100
      geom discover --per request --no-umap --json
    """
    from geomcli import config
    from geomcli.discovery import artifacts, points, record
    from geomcli.discovery.pipeline import Parameters, refuse_too_few
    from geomcli.discovery.pipeline import discover as learn
    from geomcli.store import Store

    path = config.store_path(db=None if db is None else str(db))
    if output_dir == "":
        raise UsageError("--output-dir names no folder.", "--output-dir ./discovery_artifacts")
    root = config.discovery_path(path) if output_dir is None else Path(output_dir)
    console = output.narrator()
    failed: list[GeomError] = []

    if most < min_samples:
        raise UsageError(
            f"--max-points {most} are fewer than --min-samples {min_samples}.", f"--max-points {min_samples}"
        )
    if not path.exists():
        raise GeomError(
            f"there is no trace store {path}.", "geom discover --db FILE, or geom run and geom sidecar first"
        )
    with Store(path, create=False) as store:
        found = points.stored(store, model, origin=origin, unit=per, most=most)
        console.print(
            output.marked(
                f"{len(found)} {per}s of {found.model}, from {found.origin}; {found.stored} fingerprints stored"
            )
        )
        if found.unsound:
            console.print(
                f"{found.unsound} left out: not {FINGERPRINT_SIZE} numbers in [0, 1], or all 0", style="yellow"
            )
        refuse_too_few(found, min_samples)
        if min_cluster_size is not None and min_cluster_size > len(found):
            raise UsageError(
                f"--min-cluster-size {min_cluster_size} is more than the {len(found)} points.", "a smaller one"
            )
        artifacts.prepare(root)
        parameters = Parameters(min_samples, min_cluster_size, umap, seed=seed)
        with _Stages(console) as stages:
            discovery = learn(found, parameters, stages)
        for reason in discovery.reasons:
            console.print(output.marked(reason), style="yellow")
        # What was learned is shown, whatever else cannot be done with it.
        try:
            run = artifacts.save(discovery, root)
        except GeomError:
            if not as_json:
                _print(discovery)
            raise
        made = artifacts.load(run)
        try:
            artifacts.point_to(run)
        except GeomError as error:
            failed.append(error)
        try:
            record.keep(store, made)
        except GeomError as error:
            failed.append(
                GeomError(
                    f"the run is written, but its rows in discovery_runs and clusters of {path} are missing: "
                    f"{error.message}",
                    "the same command, when nothing else writes to the store"
                    if os.access(path, os.W_OK)
                    else "--db FILE of a store that may be written",
                )
            )
    if as_json:
        import msgspec

        output.print_json(msgspec.to_builtins(made.manifest))
    else:
        _print(discovery)
        console.print(output.marked(f"artifacts: {run}"))
    for each in failed[:-1]:
        output.fail(each)
    if failed:
        raise failed[-1]


class _Stages:
    """A line for each stage: its name when it starts, its time when it is over."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = False

    def __call__(self, stage: str, seconds: float | None) -> None:
        self._open = seconds is None
        if seconds is None:
            self._console.print(f"  {_SAID[stage]:<42}", end="")
        else:
            self._console.print(f" {seconds:6.1f} s")

    def __enter__(self) -> _Stages:
        return self

    def __exit__(self, *_: object) -> None:
        if self._open:
            self._console.print()  # an error has a line of its own


def _print(discovery: Discovery) -> None:
    from rich.table import Table

    from geomcli.discovery.pipeline import noise_of
    from geomcli.display import cluster_name

    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, right in (("", False), ("share", True), ("points", True), ("zone", False), ("traits", False),
                          ("peak", True), ("radius", True)):  # fmt: skip
        table.add_column(column, justify="right" if right else "left")
    for found in discovery.found:
        glyph, style = output.ZONE_STYLES.get(found.zone.zone, ("", "default"))
        traits = "; ".join(
            f"{trait.name} ({trait.metric} {trait.value:.2f}, {trait.deviations:+.1f} sd)" for trait in found.traits
        )
        table.add_row(
            cluster_name(found.cluster), f"{found.share:.0%}", str(found.size),
            f"[{style}]{glyph}[/] {output.marked(found.zone.zone)} {found.zone.share:.0%}", traits or "-", found.peak,
            f"{found.radius:.2f}",
        )  # fmt: skip
    noise = noise_of(discovery)
    table.add_row("·", f"{noise / len(discovery.points):.0%}", str(noise), "noise: in no cluster", "", "", "")
    console = output.speaker()
    console.print(table)
    c = discovery.calibration
    if c.held_out:
        judged = "not known: too few requests" if c.error is None else f"{c.error:.3f}"
        console.print(
            f"Held out, by request: {c.accuracy:.1%} of {c.held_out} given to the cluster of the clustering; expected "
            f"calibration error {judged}.",
            style="dim",
        )
    elif discovery.found:
        console.print(
            "Not calibrated: a confidence needs clusters with members from several requests. Each is 0.50.",
            style="dim",
        )
    if discovery.clusters.one_kind:
        console.print("One cluster: HDBSCAN found none, and most of the fingerprints are of one kind.", style="dim")
    if not discovery.found:
        console.print("No cluster: the fingerprints lie in one cloud, or there are too few. That is a result, too.")
