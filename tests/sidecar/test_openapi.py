"""What the sidecar says of its endpoints on /openapi.json is what they do, whatever is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from geomcli.discovery import artifacts
from geomcli.discovery.pipeline import Parameters, discover
from tests import openapi
from tests.discovery.made_points import planted, points
from tests.sidecar.running import HEALTHY, messages, send, sidecar

OPERATIONS = 10


@pytest.mark.parametrize("learnt", [True, False])
def test_answers_are_those_of_the_openapi_page(tmp_path: Path, learnt: bool) -> None:
    root = tmp_path / "discovery"
    if learnt:
        artifacts.write(discover(points(60)[0], Parameters(umap=False)), root)
    with sidecar(tmp_path, "--discovery-dir", str(root), GEOM_SIDECAR_KEY="k") as running:
        if learnt:
            send(running.zmq_url, messages(planted(60)[0]))
            running.received(330, Authorization="Bearer k")
        openapi.conforms(running.url, tmp_path, "Authorization: Bearer k", least=100, under="/", operations=OPERATIONS)
        assert running.process.poll() is None
        assert running.ask("GET", "/health") == (200, HEALTHY)
