"""What a running server says of its endpoints on /openapi.json, held against what they do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.conftest import GEOM
from tests.engine.harness import Server

EXAMPLES = 60
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "missing_required_header",
    "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip


def conforms(server: Server, folder: Path, *headers: str, least: int) -> None:
    """Schemathesis finds nothing under /v1/attention in at least `least` requests, each sent with `headers`."""
    sent = [word for header in headers for word in ("--header", header)]
    done = subprocess.run(
        [
            GEOM.parent / "schemathesis", "run", f"{server.url}/openapi.json",
            "--include-path-regex", "^/v1/attention/",
            "--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES), "--generation-deterministic", "--no-color",
            *sent,
        ],
        capture_output=True, text=True, cwd=folder, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 1\n" in done.stdout, done.stdout
    counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counted is not None, done.stdout
    assert counted[1] == counted[2]
    assert int(counted[1]) >= least
