"""What a request has to show before anything of it is read."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator

import pytest

from geomcli.sidecar.documents import MOST_VECTORS
from geomcli.sidecar.guard import LONGEST_BODY
from tests.discovery.made_points import planted
from tests.sidecar.running import HEALTHY, Sidecar, sidecar

QUIET = ("--recluster-interval", "3600")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    with sidecar(tmp_path_factory.mktemp("guard"), *QUIET, GEOM_SIDECAR_KEY="secret") as made:
        yield made


def answer_of(url: str, head: Iterable[str], *body: bytes) -> tuple[int, bytes]:
    """Status and body of what comes back as soon as so much of a request was sent."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        lines = [*head, f"host: {host}", "content-type: application/json"]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        for part in body:
            connection.sendall(part)
        stream = connection.makefile("rb")
        status = int(stream.readline().split()[1])
        length = 0
        while (line := stream.readline()).strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, stream.read(length)


def test_without_the_key_no_body_is_waited_for(running: Sidecar) -> None:
    for head in ("POST /predict HTTP/1.1", "POST /classify HTTP/1.1", "GET /nowhere HTTP/1.1"):
        status, said = answer_of(running.url, [head, "content-length: 500"])
        assert status == 401
        assert "Authorization" in json.loads(said)["detail"]
    head = "POST /predict HTTP/1.1"
    assert answer_of(running.url, [head, "content-length: 99999999"])[0] == 401
    assert answer_of(running.url, [head, "authorization: Basic secret", "content-length: 9"])[0] == 401
    assert answer_of(running.url, [head, "authorization: bearer secret", "content-length: 2"], b"{}")[0] == 422


def test_a_body_that_says_it_is_too_long_is_not_read(running: Sidecar) -> None:
    key = "authorization: Bearer secret"
    status, said = answer_of(running.url, ["POST /predict HTTP/1.1", key, f"content-length: {LONGEST_BODY + 1}"])
    assert status == 413
    assert str(LONGEST_BODY) in json.loads(said)["detail"]
    assert answer_of(running.url, ["POST /health HTTP/1.1", f"content-length: {LONGEST_BODY + 1}"])[0] == 413


def test_a_body_that_goes_on_and_on_is_cut(running: Sidecar) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    status, said = answer_of(
        running.url,
        ["POST /classify HTTP/1.1", "authorization: Bearer secret", "transfer-encoding: chunked"],
        *[chunk] * (LONGEST_BODY // 65536 + 1),
    )
    assert status == 413
    assert "detail" in json.loads(said)
    assert running.ask("GET", "/health") == (200, HEALTHY)


def test_the_most_vectors_in_the_longest_spelling_fit(running: Sidecar) -> None:
    vectors = planted(MOST_VECTORS)[0][:MOST_VECTORS].tolist()
    body = json.dumps({"vectors": vectors}, indent=2).replace(".", ".000000").encode()
    assert len(body) < LONGEST_BODY
    head = ["POST /classify HTTP/1.1", "authorization: Bearer secret", f"content-length: {len(body)}"]
    assert answer_of(running.url, head, body)[0] == 409  # read, and no discovery to answer from


def test_the_pages_about_the_interface_are_open(running: Sidecar) -> None:
    page = running.get("/openapi.json")
    for path, methods in page["paths"].items():
        for operation in methods.values():
            assert "413" in operation["responses"], path
            assert ("401" in operation["responses"]) == (path != "/health")
    assert running.ask("GET", "/docs")[0] == 200
