"""What the manifold shows: a scope, its points, and the one that is looked at. Knows no widget."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from geomcli.clusters import NOISE
from geomcli.compass import HALT_THRESHOLD
from geomcli.display import cluster_name
from geomcli.store_queries import RECENT_DAYS, RECENT_TRACES, Scope, TracePoint
from geomcli.tui.cloud import SCOPES, Cloud, Key, TokenCloud, empty, mean_fingerprint
from geomcli.tui.grouping import ZONE_KINDS, Backdrop, Grouping, Kinds, Label
from geomcli.tui.learned import Learned
from geomcli.tui.mapping import Mapping
from geomcli.tui.session import Overlay, Place, Session
from geomcli.tui.turn import Token, Turn

if TYPE_CHECKING:
    from geomcli.discovery.classification import Classification, OffManifold

SCOPE_WORDS: dict[Scope, str] = {
    "session": "the tokens of this session",
    "recent": f"the newest {RECENT_TRACES} traces of the last {RECENT_DAYS} days",
    "saved": "every finished trace of the store",
    "all": "every trace of the store, cut off ones too",
}


class Manifold:
    """`scope`; `cloud`: its points; `grouping`: their clusters; `mapping`: their places on the learned map; `chosen`:
    index of the point under the cursor; `loading`, `error`: of the store."""

    def __init__(self, session: Session, learned: Learned) -> None:
        self.session, self.learned = session, learned
        self.scope: Scope = "recent"
        self.cloud: Cloud = empty()
        self.chosen: int | None = None
        self.loading = False
        self.error = ""
        self.grouping = Grouping()
        self.mapping = Mapping(learned)
        self._tokens = TokenCloud()

    @property
    def of_session(self) -> bool:
        return self.scope == "session"

    def choose_scope(self, scope: Scope) -> None:
        """Another scope; its points have to be taken anew."""
        self.scope, self.cloud, self.chosen = scope, empty(), None
        self.forget()
        self.error, self.loading = "", not self.of_session
        self.mapping.of_tokens = self.of_session
        if self.of_session:
            self.take_tokens()

    def next_scope(self, delta: int) -> Scope:
        return SCOPES[(SCOPES.index(self.scope) + delta) % len(SCOPES)]

    def take_tokens(self) -> None:
        """Points of the session as it is now; the point looked at follows the session's cursor."""
        before, self.cloud = len(self.cloud), self._tokens.update(self.session.turns)
        if len(self.cloud) < before:
            self.forget()
        self.chosen = self.cloud.index(self.session.cursor) if self.chosen is None else self.chosen
        if self.chosen is None and len(self.cloud):
            self.chosen = len(self.cloud) - 1

    def take(self, cloud: Cloud) -> None:
        """Points that were read from the store; the point looked at stays the same trace, else is one's own."""
        key = self.key
        self.cloud, self.loading, self.error = cloud, False, ""
        self.forget()
        self.chosen = cloud.index(key)
        if self.chosen is None:
            self.chosen = cloud.index(self.session.turn.id) if self.session.turn is not None else None
        if self.chosen is None and len(cloud):
            self.chosen = 0

    def forget(self) -> None:
        """Other points are shown."""
        self.grouping.forget()
        self.mapping.forget()

    def fail(self, message: str) -> None:
        """Why the store could not be read."""
        self.cloud, self.chosen, self.loading, self.error = empty(), None, False, message

    @property
    def key(self) -> Key | None:
        """What the chosen point is."""
        return None if self.chosen is None else self.cloud.keys[self.chosen]

    @property
    def point(self) -> TracePoint | None:
        """The chosen trace; None where points are tokens."""
        return self.cloud.traces[self.chosen] if self.chosen is not None and self.cloud.of_traces else None

    @property
    def token(self) -> tuple[Token, Turn] | None:
        """The chosen token and its turn; None where points are traces."""
        key = self.key
        token = self.session.token_of(key) if isinstance(key, Place) else None
        return None if token is None or not isinstance(key, Place) else (token, self.session.turns[key.turn])

    @property
    def is_here(self) -> bool:
        """Whether the chosen point is where the session is."""
        if self.chosen is None:
            return False
        turn = self.session.turn
        return self.key == self.session.cursor if self.of_session else turn is not None and self.key == turn.id

    def models(self, start: int = 0) -> list[str]:
        """The model of each point, from one on."""
        if self.cloud.of_traces:
            return [point.model for point in self.cloud.traces[start:]]
        of = [turn.model for turn in self.session.turns]
        return [
            of[key.turn] if isinstance(key, Place) and key.turn < len(of) else "" for key in self.cloud.keys[start:]
        ]

    @property
    def model(self) -> str:
        """Of the chosen point; of the session where there is none."""
        if self.chosen is not None:
            return self.models(self.chosen)[0]
        return self.session.turn.model if self.session.turn is not None else ""

    @property
    def on_map(self) -> bool:
        """Whether the plane is the learned map, and not that of principal components."""
        if not self.mapping.drawn:
            return False
        traces = self.cloud.traces if self.cloud.of_traces else self.session.turns
        return any(self.learned.of(trace.model) is not None for trace in traces)

    def xy(self) -> NDArray[np.float64]:
        """[n, 2]: where the points are on the plane that is shown, nan where they are not on it."""
        return self.mapping.places(len(self.cloud)) if self.on_map else self.cloud.xy

    def backdrop(self) -> Backdrop | None:
        return self.mapping.backdrop() if self.on_map else None

    def here(self) -> tuple[float, float] | None:
        """Coordinates of where the session is: of its cursor's token, or of its trace, stored or not."""
        place: NDArray[np.float64] | None = None
        if self.of_session:
            index = self.cloud.index(self.session.cursor)
            place = None if index is None else self.xy()[index]
        elif len(self.cloud) and self.session.turn is not None:
            index = self.cloud.index(self.session.turn.id)
            if self.on_map:
                place = None if index is None else self.xy()[index]
            else:
                mean = mean_fingerprint(self.session.turn) if index is None else self.cloud.fingerprints[index]
                place = None if mean is None else self.cloud.projection.project(mean[None])[0]
        if place is None or not np.isfinite(place).all():
            return None
        x, y = place.tolist()
        return float(x), float(y)

    def clusters_due(self) -> bool:
        """Whether clusters of these points are to be looked for now."""
        if self.session.reading:
            return False
        ended = not self.of_session or all(turn.finished for turn in self.session.turns)
        return self.grouping.due(self.cloud, ended=ended)

    def kinds(self) -> tuple[NDArray[np.int64], Kinds]:
        """([n], what they are): what points are drawn as, clusters or zones."""
        grouping = self.grouping
        if self.on_map and grouping.shown:
            labels = self.mapping.clusters(len(self.cloud))
            return np.where(labels < 0, len(self.mapping.found), labels), self.mapping.kinds()
        if self.on_map or not grouping.drawn or grouping.found is None:
            return self.cloud.zones, ZONE_KINDS
        labels = grouping.labels(self.cloud)
        return np.where(labels == NOISE, len(grouping.found), labels), grouping.kinds()

    def cluster_labels(self) -> list[Label]:
        """A letter at the medoid of each cluster; on the learned map with its name."""
        if self.on_map:
            return self.mapping.names()
        found = self.grouping.found
        if found is None or not len(found):
            return []
        places = self.cloud.projection.project(found.medoids).tolist()
        return [Label(x, y, cluster_name(label)) for label, (x, y) in enumerate(places)]

    @property
    def classification(self) -> Classification | None:
        """Of the chosen point against the discovery; None where that does not fit it."""
        if self.chosen is None or (self.of_session and self.learned.of_requests):
            return None
        return self.learned.classify(self.model, self.cloud.fingerprints[self.chosen])

    @property
    def off(self) -> OffManifold | None:
        """How far the window behind the chosen token is off the manifold."""
        return None if self.token is None else self.learned.off(self.token[1], self.token[0])

    @property
    def cluster(self) -> int | None:
        """The cluster of the chosen point, NOISE where it is in none; None where none were looked for."""
        if self.grouping.found is None or self.chosen is None:
            return None
        return int(self.grouping.labels(self.cloud)[self.chosen])

    def values(self) -> NDArray[np.float64] | None:
        """What points are shaded by, [n] in 0..1 or nan; None where their zones' colours say it all."""
        match self.session.overlay:
            case Overlay.ENTROPY:
                return self.cloud.entropies
            case Overlay.DRIFT:
                return np.minimum(self.cloud.drifts / HALT_THRESHOLD, 1.0)
            case Overlay.INFLUENCE if self.of_session:
                turns = self.session.turns
                found = (turns[p.turn].influence[p.token] for p in self.cloud.keys if isinstance(p, Place))
                influence = np.fromiter(found, dtype=np.float64, count=len(self.cloud))
                return influence / max(float(influence.max(initial=0.0)), 1e-9)
        return None

    def as_json(self) -> str | None:
        """The chosen point with its fingerprint, coordinates and classification; None where there is none."""
        if self.chosen is None:
            return None
        document: dict[str, Any]
        if self.token is not None:
            token, turn = self.token
            from geomcli import reproduction

            document = json.loads(reproduction.token_json(turn.trace, token.index))
        else:
            document = msgspec.to_builtins(self.point)
            document["fingerprint"] = self.cloud.fingerprints[self.chosen].tolist()
            if self.cluster is not None:
                document["cluster"] = None if self.cluster == NOISE else cluster_name(self.cluster)
            document["principal_components"] = self.cloud.xy[self.chosen].tolist()
        return json.dumps(document | self._learned_json(), ensure_ascii=False, indent=2)

    def _learned_json(self) -> dict[str, Any]:
        """What the discovery says of the chosen point; nothing where it does not fit it."""
        found, classifier = self.classification, self.learned.classifier
        if found is None or classifier is None or self.chosen is None:
            return {}
        said: dict[str, Any] = {"discovery": classifier.artifacts.manifest.run_id, **msgspec.to_builtins(found)}
        said["letter"] = cluster_name(found.cluster) if found.on_manifold else None
        said["confidence"] = self.learned.confidence(found)
        made: dict[str, Any] = {"classification": said}
        if (off := self.off) is not None:
            made["off_manifold"] = {**msgspec.to_builtins(off), "inside": off.inside}
        if self.on_map and np.isfinite(place := self.xy()[self.chosen]).all():
            made["learned_map"] = place.tolist()
        return made

    def command(self, base_url: str, db: str) -> str | None:
        """The command that shows the chosen trace, or asks a token's question again."""
        if self.token is not None:
            from geomcli import reproduction

            return reproduction.command(self.token[1].trace, base_url=base_url)
        if self.point is None:
            return None
        return shlex.join(["geom", "traces", "show", self.point.trace_id, *(["--db", db] if db else [])])
