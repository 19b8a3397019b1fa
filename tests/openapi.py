"""What a running server says of its endpoints on /openapi.json, held against what they do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.conftest import GEOM

EXAMPLES = 60
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "positive_data_acceptance", "missing_required_header",
    "unsupported_method", "allow_header_conformance", "ignored_auth",
)  # fmt: skip


def conforms(
    url: str, folder: Path, *headers: str, least: int, under: str = "/v1/attention/", operations: int = 1
) -> None:
    """Schemathesis finds nothing `under` a path in at least `least` requests, each sent with `headers`."""
    sent = [word for header in headers for word in ("--header", header)]
    done = subprocess.run(
        [
            GEOM.parent / "schemathesis", "run", f"{url}/openapi.json",
            "--include-path-regex", f"^{under}",
            "--checks", ",".join(CHECKS), "--max-examples", str(EXAMPLES), "--generation-deterministic", "--no-color",
            *sent,
        ],
        capture_output=True, text=True, cwd=folder, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Tested: {operations}\n" in done.stdout, done.stdout
    counted = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert counted is not None, done.stdout
    assert counted[1] == counted[2]
    assert int(counted[1]) >= least
