"""The endpoints of attention are on SGLang's OpenAPI page, and answer as it says."""

from __future__ import annotations

from pathlib import Path

import httpx

from geomcli.schema import CAPABILITIES_PATH
from tests import openapi
from tests.engine.harness import Server


def test_the_page_describes_the_document(server: Server) -> None:
    page = server.get("/openapi.json")
    operation = page["paths"][CAPABILITIES_PATH]["get"]
    assert set(operation["responses"]) == {"200"}
    assert "security" not in operation
    described = page["components"]["schemas"]["Capabilities"]
    assert described["additionalProperties"] is False
    assert set(described["required"]) == set(described["properties"]) == set(server.get(CAPABILITIES_PATH))


def test_answers_are_those_of_the_page(server: Server, tmp_path: Path) -> None:
    openapi.conforms(server.url, tmp_path, least=5)


def test_other_paths_and_methods_are_not_there(server: Server) -> None:
    assert httpx.get(f"{server.url}/v1/attention/").status_code == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        refused = httpx.request(method, server.url + CAPABILITIES_PATH)
        assert refused.status_code == 405
        assert refused.headers["allow"] == "GET"
