"""One engine for the whole folder: two layers, both captured, on the port that the specification's client names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.harness import TWO_LAYERS, Server, served

PORT = 30000
CONTEXT = 2048


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    arguments = ("--attention-capture-layers", "auto", "--", *TWO_LAYERS, "--context-length", str(CONTEXT))
    with served(tmp_path_factory.mktemp("live"), *arguments, port=PORT) as running:
        yield running
