"""What this scheduler process learnt at its start, and the step that is being computed. One instance a process."""

from __future__ import annotations

from typing import Any

from geomcli.detectors.calibration import Calibration
from geomcli.server_patch.server_options import ServerOptions


class SchedulerState:
    def __init__(self) -> None:
        self.options = ServerOptions()
        self.layers: tuple[int, ...] = ()
        self.layers_total = 0
        self.heads_total = 0
        self.backend = ""
        self.source = ""  # how logits are obtained: recompute, probe or tap
        self.cuda_graph = False
        self.embeddings: dict[int, Any] = {}  # rotary embedding of each captured layer, empty where not undone
        self.not_derotated = ""  # why
        self.current: Any = None  # the step's plan while its forward pass runs
        self.recording = False  # a CUDA graph with capture is being recorded
        self.deviations: list[str] = []  # where the engine's attention is not the model's
        self.routing: Any = None  # the moe.Routing of a model with experts, where the server captures it
        self.routing_missing = ""  # why there is none
        self.device: Any = None  # the DeviceCapture of backends that run kernels
        self.evictor: Any = None  # where keys of running requests leave
        self.calibrations: dict[str, Calibration] = {}  # by path
        self.metrics = False  # whether the server has any
        self.ranking: Any = None  # of the prefix cache's nodes, where the policy is spectral
        self.publisher: Any = None  # where records go; None on ranks that send no tokens


scheduler = SchedulerState()
