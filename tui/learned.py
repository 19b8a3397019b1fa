"""The discovery beside the store, for a UI loop: read in a thread, looked at again when there may be another one.

Says what it makes of fingerprints, of a turn, and of the window behind a token. Knows no widget.
"""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE
from geomcli.compass import DRIFT_WINDOW
from geomcli.discovery.stamps import stamp_of
from geomcli.display import printable, zone_label
from geomcli.errors import GeomError
from geomcli.fingerprint import FINGERPRINT_SIZE
from geomcli.tui.turn import Token, Turn

if TYPE_CHECKING:
    from geomcli.discovery.artifacts import Artifacts
    from geomcli.discovery.classification import Classification, Classifier, OffManifold

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

MOST_DOTS = 3000  # of a map: more are no plainer, and every new point is measured against each
_WAITS = 64  # newest tokens whose numbers may still come
_NO_READER = "the learned map needs pyarrow. Try: pip install 'geomcli[discover]'"


@dataclass(frozen=True, eq=False)
class Plane:
    """The map of a discovery, thinned. xy [m, 2]; clusters [m], NOISE or more; z [m, 20]: standardised fingerprints;
    medoids [k, 2]: where the clusters' medoids are on it.
    """

    xy: Floats
    clusters: Labels
    z: Floats
    medoids: Floats


class Found(NamedTuple):
    """What a look found. problem, plane_problem: a sentence for what is there and cannot be used."""

    classifier: Classifier | None = None
    plane: Plane | None = None
    problem: str = ""
    plane_problem: str = ""


class Tally:
    """What a discovery says of a turn's tokens so far. counts: tokens of each cluster, NOISE for those in none."""

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()
        self.read = 0  # tokens of the turn that were looked at
        self._sum = 0.0
        self._total: Floats = np.zeros(FINGERPRINT_SIZE)
        self._tokens = 0

    @property
    def n(self) -> int:
        """Classified tokens."""
        return self.counts.total()

    @property
    def off(self) -> int:
        """Those that are in no cluster."""
        return self.counts[NOISE]

    @property
    def confidence(self) -> float:
        """Their mean confidence."""
        return self._sum / max(1, self.n)

    def shares(self) -> list[tuple[int, float]]:
        """(cluster, share of the tokens), the largest first, without noise."""
        some = [(label, count / self.n) for label, count in self.counts.items() if label != NOISE]
        return sorted(some, key=lambda pair: (-pair[1], pair[0]))

    def add(self, labels: Labels, confidences: Floats) -> None:
        self.counts.update(labels.tolist())
        self._sum += float(confidences.sum())

    def with_mean(self, fingerprints: Floats) -> Floats:
        """Mean [20] of all fingerprints so far, these [m, 20] among them."""
        self._total = self._total + fingerprints.sum(axis=0)
        self._tokens += len(fingerprints)
        made: Floats = self._total / self._tokens
        return made

    def mean(self, labels: Labels, confidences: Floats) -> None:
        """What the mean is, in the place of what it was."""
        self.counts, self._sum = Counter(labels.tolist()), float(confidences.sum())


class Learned:
    """`classifier`, `plane`: of the newest discovery, None while there is none to be used; `problem`, `plane_problem`:
    why, where there is one all the same; `looked`: whether that is known already.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.classifier: Classifier | None = None
        self.plane: Plane | None = None
        self.problem = self.plane_problem = ""
        self.looked = False
        self._busy = False
        self._stamp: object = None
        self._tallies: WeakKeyDictionary[Turn, Tally] = WeakKeyDictionary()

    async def look(self) -> bool:
        """Read what is there, in a thread, unless it is what was read before; whether it is something else."""
        if self._busy:
            return False
        self._busy = True
        try:
            before = self._stamp if self.looked else ""
            stamp, found = await asyncio.to_thread(_look, self.root, before)
        finally:
            self._busy = False
        if found is None:
            return False
        self._stamp, self.looked = stamp, True
        self.classifier, self.plane, self.problem, self.plane_problem = found
        self._tallies.clear()
        return True

    def of(self, model: str) -> Classifier | None:
        """What fingerprints of a model are classified by; None where the discovery is of another one."""
        found = self.classifier
        return found if found is not None and found.artifacts.manifest.model == model else None

    @property
    def calibrated(self) -> bool:
        """Whether confidences rest on held-out fingerprints."""
        return self.classifier is not None and self.classifier.artifacts.manifest.calibrated

    @property
    def of_requests(self) -> bool:
        """Whether means of requests were learned, which single tokens are not like."""
        return self.classifier is not None and self.classifier.artifacts.manifest.unit == "request"

    def why_not(self, model: str) -> str:
        """A sentence with a mend: why nothing of a model is classified; "" where it is."""
        if self.of(model) is not None:
            return ""
        if self.problem:
            return self.problem
        if self.classifier is None:
            return f"There are no discovery artifacts in {self.root}. Try: geom discover"
        other = self.classifier.artifacts.manifest.model
        what = (
            f"this is of {model}. Try: geom discover --model {shlex.quote(model)}" if model else "this is of no model."
        )
        return f"The discovery is of {other}, {what}"

    def classify(self, model: str, fingerprint: Floats) -> Classification | None:
        """Of one fingerprint [20]; None where the discovery does not fit it."""
        classifier = self.of(model)
        if classifier is None or not np.isfinite(fingerprint).all():
            return None
        return classifier.classify(np.clip(fingerprint, 0.0, 1.0)[None])[0]

    def confidence(self, found: Classification) -> float | None:
        """None where no held-out fingerprint was like it."""
        if self.classifier is None or not self.calibrated:
            return None
        a = self.classifier.artifacts
        return found.confidence if len((a.inside if found.on_manifold else a.outside).x) else None

    def assign(self, fingerprints: Floats) -> tuple[Labels, Floats]:
        """(cluster [m], confidence [m]) of finite fingerprints [m, 20], as `Classifier.classify` has them."""
        assert self.classifier is not None
        return _assigned(self.classifier.artifacts, np.clip(fingerprints, 0.0, 1.0))

    def tally(self, turn: Turn) -> Tally | None:
        """Of what is shown of a turn; only what is new is classified, or their mean where requests were learned. None
        where the discovery does not fit it.
        """
        if self.of(turn.model) is None:
            return None
        tally = self._tallies.setdefault(turn, Tally())
        rows, done = [], tally.read
        for token in turn.tokens[tally.read :]:
            fingerprint = token.fingerprint
            if fingerprint is not None and np.isfinite(fingerprint).all():
                rows.append(fingerprint)
                done = token.index + 1
        tally.read = max(done, len(turn.tokens) - _WAITS)
        if rows and self.of_requests:
            tally.mean(*self.assign(tally.with_mean(np.array(rows))[None]))
        elif rows:
            tally.add(*self.assign(np.array(rows)))
        return tally

    def off(self, turn: Turn, token: Token) -> OffManifold | None:
        """How far the compass' window behind a token is off the manifold; None before it is full, and without a
        discovery of the model.
        """
        classifier = self.of(turn.model)
        if classifier is None or token.fingerprint is None:
            return None
        rows: list[Floats] = []
        for index in range(min(token.index, len(turn.tokens) - 1), -1, -1):
            fingerprint = turn.tokens[index].fingerprint
            if fingerprint is not None and np.isfinite(fingerprint).all():
                rows.append(np.clip(fingerprint, 0.0, 1.0))
                if len(rows) == DRIFT_WINDOW:
                    from geomcli.discovery.reading import off_manifold

                    return off_manifold(np.array(rows[::-1]), classifier)[-1]
        return None


def words(name: str) -> str:
    """A cluster's name for eyes: "syntax floor, local attention"."""
    return printable(zone_label(name))


def _look(root: Path, before: object) -> tuple[object, Found | None]:
    """(what tells this discovery from another, what it is); None for it when that is `before`."""
    stamp = stamp_of(root)
    return stamp, (None if stamp == before else _read(root))


def _read(root: Path) -> Found:
    """Everything that is imported for it is imported here, in the thread."""
    try:
        if not root.exists():
            return Found()
        from geomcli.discovery.artifacts import check_file, load
        from geomcli.discovery.classification import Classifier

        classifier = Classifier(load(root))
    except GeomError as error:
        return Found(problem=str(error))
    except OSError as error:
        return Found(problem=f"The discovery in {root} cannot be read: {error.strerror or error}.")
    path = classifier.artifacts.path / "embeddings.parquet"
    try:
        check_file(path.parent, classifier.artifacts.manifest, path.name)
        return Found(classifier, _plane(path, classifier.artifacts))
    except ImportError:
        return Found(classifier, plane_problem=_NO_READER)
    except Exception as error:  # pyarrow's readers of damaged files raise what they like
        first = (str(error) or type(error).__name__).splitlines()[0]
        return Found(classifier, plane_problem=f"The map {path} is damaged: {first}. Try: geom discover")


def _plane(path: Path, artifacts: Artifacts) -> Plane:
    from pyarrow import parquet

    from geomcli.discovery.maps import place

    columns = ("x", "y", "cluster", "fingerprint")
    table = parquet.read_table(path, columns=list(columns), use_threads=False).combine_chunks()
    xy = np.column_stack([table[name].to_numpy() for name in columns[:2]]).astype(np.float64)
    clusters = table["cluster"].to_numpy().astype(np.int64)
    values = table["fingerprint"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    z = (values.reshape(len(xy), -1).astype(np.float64) - artifacts.mean) / artifacts.scale
    sound = np.isfinite(xy).all(axis=1) & np.isfinite(z).all(axis=1) & (clusters < len(artifacts.medoids))
    if not sound.any():
        raise ValueError("it has no point")
    xy, clusters, z = xy[sound], clusters[sound], z[sound]
    medoids = place((artifacts.medoids - artifacts.mean) / artifacts.scale, z, xy)
    kept = np.linspace(0, len(xy) - 1, min(len(xy), MOST_DOTS)).astype(np.int64)
    return Plane(xy[kept], np.maximum(clusters[kept], NOISE), z[kept], medoids)


def _assigned(a: Artifacts, fingerprints: Floats) -> tuple[Labels, Floats]:
    from geomcli.discovery.calibration import assigned_to

    z, medoids = (fingerprints - a.mean) / a.scale, (a.medoids - a.mean) / a.scale
    labels, margins = assigned_to(z, medoids, a.radii)
    return labels, np.where(labels != NOISE, a.inside(margins), a.outside(margins))
