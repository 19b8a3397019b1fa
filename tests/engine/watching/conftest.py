"""One engine of two layers for the whole folder; who is watched, and how, is what each request says."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.harness import TWO_LAYERS, Server, served


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with served(tmp_path_factory.mktemp("watching"), "--", *TWO_LAYERS, "--enable-metrics") as running:
        yield running
