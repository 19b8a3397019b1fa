"""What a discovery leaves behind: a folder of npz, Parquet and JSON files that a reader sees whole or not at all.

ROOT/RUN/manifest.json, model.npz, embeddings.parquet, clusters.parquet, prototypes.parquet, requests.parquet, and
ROOT/latest, a link to the newest run. Nothing in it is code: no pickles. A run that cannot be read is an error, also
where an older one could: nobody classifies against another run than the one named.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli import __version__
from geomcli.clusters import NOISE, distances
from geomcli.discovery.calibration import Curve, assigned_to
from geomcli.discovery.pipeline import Discovery, Found, noise_of
from geomcli.discovery.stamps import LATEST
from geomcli.discovery.version import commit
from geomcli.errors import GeomError
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.zones import ZONES_V1

FORMAT, VERSION = "geom-discovery", 1
_MANIFEST, _MODEL = "manifest.json", "model.npz"
_PROTOTYPES = 10  # of each cluster
_UNFINISHED = re.compile(rf"\.\d{{8}}-\d{{6}}-[0-9a-f]{{6}}\.(tmp|{LATEST})")
_STALE = 3600.0  # seconds; writing a run takes a few
MAKE = "geom discover --output-dir DIR"

Floats = NDArray[np.float64]


class Manifest(msgspec.Struct, frozen=True):
    """format, version: of the folder; run_id; created: epoch ms; n: fingerprints it was learned from, of `stored`;
    calibration: `held_out` fingerprints, where there are any the share that was right (`accuracy`), and where it could
    be judged the expected calibration `error`; implementations: what computed a stage; git: the commit of geom, where
    it is known; files: SHA-256 of the others in the folder.
    """

    format: str
    version: int
    run_id: str
    created: int
    geom: str
    model: str
    origin: str
    unit: str
    n: int
    stored: int
    requests: int
    noise: int
    ruleset: str
    seed: int
    map: str
    parameters: dict[str, Any]
    seconds: dict[str, float]
    calibration: dict[str, float]
    clusters: list[Found]
    implementations: dict[str, str] = {}
    git: str | msgspec.UnsetType = msgspec.UNSET
    files: dict[str, str] = {}

    @property
    def calibrated(self) -> bool:
        """Whether confidences rest on anything: else all of them are .5."""
        return self.calibration.get("held_out", 0) > 0


@dataclass(frozen=True, eq=False)
class Artifacts:
    """A run as read. mean, scale [20]; medoids [k, 20]; radii [k]: standardised distances; angles [k]: radians."""

    path: Path
    manifest: Manifest
    mean: Floats
    scale: Floats
    medoids: Floats
    radii: Floats
    angles: Floats
    inside: Curve
    outside: Curve


def write(discovery: Discovery, root: Path) -> Path:
    """Write a run below `root`, point `latest` to it, and return the run's folder; GeomError when that cannot be."""
    run = save(discovery, root)
    point_to(run)
    return run


def save(discovery: Discovery, root: Path) -> Path:
    """Write a run below `root` and return its folder; GeomError when that cannot be, with nothing left of it."""
    run_id = time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)
    temporary, final = root / f".{run_id}.tmp", root / run_id
    with _said(root):
        root.mkdir(parents=True, exist_ok=True)
        _sweep(root)
        temporary.mkdir()
        try:
            _fill(temporary, discovery, run_id)
            load(temporary)
            temporary.rename(final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return final


def prepare(root: Path) -> None:
    """Make the folder that runs are written to; GeomError where none could be, known before anything is learned."""
    with _said(root):
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".{secrets.token_hex(6)}"
        probe.mkdir()
        probe.rmdir()


def point_to(run: Path) -> None:
    """Let `latest` beside a run name it; GeomError when that cannot be: the run stays."""
    latest, link = run.parent / LATEST, run.parent / f".{run.name}.{LATEST}"
    if latest.exists() and not latest.is_symlink():
        where = shlex.quote(str(run.parent))
        raise GeomError(
            f"the run is written, {run}, but {latest} is no link and cannot be pointed to it.",
            f"cd {where} && mv {LATEST} {LATEST}.copied && ln -s {run.name} {LATEST}",
        )
    with _said(run.parent):
        link.symlink_to(run.name, target_is_directory=True)
        try:
            os.replace(link, latest)
        except BaseException:
            link.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _said(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or root
        raise GeomError(f"the artifacts cannot be written: {where}: {error.strerror or error}.", MAKE) from None


def _sweep(root: Path) -> None:
    """Remove what runs that were killed while they wrote have left."""
    for left in root.iterdir():
        with contextlib.suppress(OSError):  # another run may remove it, too
            if not _UNFINISHED.fullmatch(left.name) or time.time() - left.lstat().st_mtime < _STALE:
                continue
            if left.is_symlink():
                left.unlink()
            else:
                shutil.rmtree(left)


def load(path: Path) -> Artifacts:
    """The run in a folder, or the latest of a folder with runs; GeomError says what is wrong with it."""
    latest = path / LATEST
    try:
        folder = (latest if latest.exists() else path).resolve()
    except (OSError, RuntimeError) as error:
        raise GeomError(f"{path} cannot be read: {error}.", MAKE) from None
    if latest.is_symlink() and not latest.exists():
        raise GeomError(f"{latest} names a run that is not there, {os.readlink(latest)}.", MAKE)
    if not (folder / _MANIFEST).is_file():
        where = shlex.quote(str(path.absolute()))
        raise GeomError(f"{path.absolute()} holds no discovery artifacts.", f"geom discover --output-dir {where}")
    try:
        raw = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=dict[str, Any])
        if raw.get("format") != FORMAT:
            raise GeomError(f"{folder / _MANIFEST} is of format {raw.get('format')!r}, not {FORMAT!r}.", MAKE)
        if raw.get("version") != VERSION:
            raise GeomError(
                f"{folder} has artifacts of version {raw.get('version')}; this geom reads {VERSION}.",
                "pip install --upgrade geomcli",
            )
        manifest = msgspec.convert(raw, Manifest)
        check_file(folder, manifest, _MODEL)
        with np.load(folder / _MODEL, allow_pickle=False) as stored:
            arrays = {name: np.asarray(stored[name], dtype=np.float64) for name in stored.files}
        return _checked(folder, manifest, arrays)
    except GeomError:
        raise
    except Exception as error:  # numpy's readers of damaged files raise what they like
        raise GeomError(f"the artifacts in {folder} are damaged: {str(error) or type(error).__name__}.", MAKE) from None


def check_file(folder: Path, manifest: Manifest, name: str) -> None:
    """ValueError where a file of the run is another one than it wrote; OSError where it cannot be read."""
    if (digest := manifest.files.get(name)) is not None and _digest(folder / name) != digest:
        raise ValueError(f"{name} is not the file that the run wrote")


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _checked(folder: Path, manifest: Manifest, arrays: dict[str, Floats]) -> Artifacts:
    k = len(manifest.clusters)
    shapes = {
        "mean": (FINGERPRINT_SIZE,), "scale": (FINGERPRINT_SIZE,), "medoids": (k, FINGERPRINT_SIZE), "radii": (k,),
        "angles": (k,),
    }  # fmt: skip
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, not {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} has a value that is no number")
        if name in ("scale", "radii", "angles") and (arrays[name] <= 0).any():
            raise ValueError(f"{name} has a value that is not above 0")
    if (np.abs(arrays["medoids"] - 0.5) > 0.501).any():
        raise ValueError("medoids has a value outside [0, 1]")
    if not 0 <= manifest.noise <= manifest.n or not all(0 < cluster.share <= 1 for cluster in manifest.clusters):
        raise ValueError("the manifest counts what cannot be")
    for place, cluster in enumerate(manifest.clusters):
        if cluster.cluster != place:
            raise ValueError(f"clusters[{place}] of the manifest is cluster {cluster.cluster}")
        said, there = (cluster.radius, cluster.angle), (arrays["radii"][place], arrays["angles"][place])
        if not np.allclose(said, there, rtol=1e-6):
            raise ValueError(
                f"{_MODEL} is of another run than {_MANIFEST}: cluster {place} has another radius or angle"
            )
    curves = []
    for side in ("inside", "outside"):
        x, y = arrays[f"{side}_x"], arrays[f"{side}_y"]
        if x.ndim != 1 or x.shape != y.shape:
            raise ValueError(f"the curve {side} has {x.size} and {y.size} corners")
        constant = float(arrays[f"{side}_constant"])
        shares = np.append(y, constant)
        if not (np.isfinite(x).all() and (np.diff(x) >= 0).all() and (shares >= 0).all() and (shares <= 1).all()):
            raise ValueError(f"the curve {side} is no rising line of shares")
        curves.append(Curve(x, y, constant))
    return Artifacts(
        folder, manifest, arrays["mean"], arrays["scale"], arrays["medoids"], arrays["radii"], arrays["angles"],
        curves[0], curves[1],
    )  # fmt: skip


def _fill(folder: Path, discovery: Discovery, run_id: str) -> None:
    from pyarrow import parquet

    points, groups, calibration = discovery.points, discovery.clusters, discovery.calibration
    components = discovery.map.components
    np.savez(
        folder / _MODEL,
        mean=groups.mean,
        scale=groups.scale,
        components=components.components,
        explained=components.explained,
        medoids=groups.medoids.reshape(-1, FINGERPRINT_SIZE),
        radii=groups.radii,
        angles=np.array([found.angle for found in discovery.found]),
        inside_x=calibration.inside.x,
        inside_y=calibration.inside.y,
        inside_constant=calibration.inside.constant,
        outside_x=calibration.outside.x,
        outside_y=calibration.outside.y,
        outside_constant=calibration.outside.constant,
    )
    for name, table in _tables(discovery).items():
        parquet.write_table(table, folder / f"{name}.parquet", compression="zstd")
    manifest = Manifest(
        format=FORMAT,
        version=VERSION,
        run_id=run_id,
        created=int(time.time() * 1000),
        geom=__version__,
        model=points.model,
        origin=points.origin,
        unit="request" if points.of_requests else "token",
        n=len(points),
        stored=points.stored,
        requests=len(set(points.requests)),
        noise=noise_of(discovery),
        ruleset=ZONES_V1.name,
        seed=discovery.parameters.seed,
        map=discovery.map.method,
        parameters={
            **msgspec.to_builtins(discovery.parameters),
            "smallest": groups.smallest,
            "one_kind": groups.one_kind,
        },
        seconds={name: round(seconds, 3) for name, seconds in discovery.seconds.items()},
        calibration={
            "held_out": calibration.held_out,
            **({"accuracy": calibration.accuracy} if calibration.held_out else {}),
            **({} if calibration.error is None else {"error": calibration.error}),
        },
        clusters=discovery.found,
        implementations=discovery.implementations,
        git=commit() or msgspec.UNSET,
        files={file.name: _digest(file) for file in sorted(folder.iterdir())},
    )
    # Last, so that a folder with a manifest is a whole one.
    (folder / _MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))


def _tables(discovery: Discovery) -> dict[str, Any]:
    import pyarrow as pa

    points, groups = discovery.points, discovery.clusters
    z = (points.fingerprints - groups.mean) / groups.scale
    centres = (groups.medoids.reshape(-1, FINGERPRINT_SIZE) - groups.mean) / groups.scale
    _, margins = assigned_to(z, centres, groups.radii)
    labels = groups.labels
    embeddings = pa.table({
        "request_id": points.requests,
        "step": points.steps,
        "x": discovery.map.xy[:, 0],
        "y": discovery.map.xy[:, 1],
        "cluster": labels,
        "zone": points.zones,
        "margin": margins,
        "fingerprint": pa.FixedSizeListArray.from_arrays(
            pa.array(points.fingerprints.astype(np.float32).ravel()), FINGERPRINT_SIZE
        ),
    })  # fmt: skip
    found = discovery.found
    described = pa.table({
        "cluster": [f.cluster for f in found],
        "name": [f.name for f in found],
        "size": [f.size for f in found],
        "share": [f.share for f in found],
        "zone": [f.zone.zone for f in found],
        "zone_share": [f.zone.share for f in found],
        "traits": [msgspec.json.encode(f.traits).decode() for f in found],
        "radius": [f.radius for f in found],
        "angle": [f.angle for f in found],
        "peak_distance": [f.peak for f in found],
    })  # fmt: skip
    nearest: dict[str, list[Any]] = {"cluster": [], "rank": [], "request_id": [], "step": [], "distance": []}
    for label in range(len(groups)):
        members = np.flatnonzero(labels == label)
        apart = distances(z[members], centres[label, None])[:, 0]
        for rank, at in enumerate(np.argsort(apart, kind="stable")[:_PROTOTYPES].tolist()):
            place = int(members[at])
            row = (label, rank, points.requests[place], int(points.steps[place]), float(apart[at]))
            for column, value in zip(nearest.values(), row, strict=True):
                column.append(value)
    return {
        "embeddings": embeddings,
        "clusters": described,
        "prototypes": pa.table(nearest),
        "requests": pa.table(_requests(discovery)),
    }


def _requests(discovery: Discovery) -> dict[str, list[Any]]:
    """For each request its points, how many of them are noise, and the cluster that most of the others are in."""
    of: dict[str, Counter[int]] = {}
    for request, label in zip(discovery.points.requests, discovery.clusters.labels.tolist(), strict=True):
        of.setdefault(request, Counter())[label] += 1
    made: dict[str, list[Any]] = {"request_id": [], "points": [], "noise": [], "cluster": [], "share": []}
    for request, counts in of.items():
        total, noise = sum(counts.values()), counts.pop(NOISE, 0)
        label = min(counts, key=lambda name: (-counts[name], name), default=NOISE)
        for column, value in zip(
            made.values(), (request, total, noise, label, counts[label] / total if counts else 0.0), strict=True
        ):
            column.append(value)
    return made
