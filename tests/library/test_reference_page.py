"""docs/reference.md is what the code says, complete, and every example in it is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from geomcli.detectors.calibration import save
from geomcli.server_patch import flags, reference
from geomcli.server_patch.request_options import FIELDS, ModelShape, resolve
from geomcli.server_patch.server_options import ServerOptions
from tests.library.made_answers import made_calibration

MODEL = ModelShape(4, (1, 3), 8, moe_layers=(0, 1))
ASK = {"return_attention_tokens": True}


def test_the_page_is_up_to_date() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference.md").read_text()
    assert page == reference.markdown(), "python -m geomcli.server_patch.reference > docs/reference.md"


def test_every_flag_and_field_is_described() -> None:
    assert set(reference.FLAGS) == set(reference.actions())
    assert set(reference.FIELDS) == set(FIELDS)
    assert all(action.help for action in reference.actions().values())


# What a flag says something about: alone it would change nothing, or be refused.
CAPTURING = ("--return-attention-tokens",)
BESIDE = {
    "--attention-firewall": CAPTURING,
    "--attention-firewall-window": (*CAPTURING, "--attention-firewall", "log_only"),
    "--attention-firewall-threshold": (*CAPTURING, "--attention-firewall", "log_only"),
    "--attention-firewall-detector": (
        *CAPTURING,
        "--attention-firewall",
        "log_only",
        "--attention-firewall-threshold",
        "0.4",
    ),
    "--attention-auto-sampling": CAPTURING,
    "--spectral-evict-decode": CAPTURING,
    "--spectral-retention-ratio": (*CAPTURING, "--spectral-evict-decode"),
}


@pytest.mark.parametrize("flag", reference.FLAGS)
def test_examples_of_flags_are_accepted_and_change_something(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(made_calibration("heads"), tmp_path / reference.FLAGS["--attention-calibration"].example)
    words = [flag, reference.FLAGS[flag].example] if reference.FLAGS[flag].example else [flag]
    beside = BESIDE.get(flag, ())
    parser = reference.parser()
    without = flags.options_from(parser.parse_args(beside))
    assert flags.options_from(parser.parse_args([*beside, *words])) != without


@pytest.mark.parametrize("field", reference.FIELDS)
def test_examples_of_fields_are_accepted(field: str) -> None:
    value = json.loads(reference.FIELDS[field].example.replace("{layer}", "3"))
    server = ServerOptions(enabled=True, retention=0.3 if field == "spectral_retention_ratio" else None)
    assert resolve({**ASK, field: value}, server, MODEL) is not None


@pytest.mark.parametrize("path", [path for path, one in reference.ENDPOINTS.items() if one.example])
def test_examples_of_bodies_ask(path: str) -> None:
    body = json.loads(reference.ENDPOINTS[path].example)
    assert resolve(body, ServerOptions(enabled=True), MODEL) is not None


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--attention-tokens-top-k", "0"), ("--attention-tokens-top-k", "65"), ("--attention-tokens-max", "-1"),
        ("--attention-tokens-stride", "0"), ("--attention-tokens-window", "-1"), ("--attention-sink-tokens", "1025"),
        ("--attention-fingerprint-max-steps", "-1"), ("--attention-chunk-size", "255"),
        ("--attention-chunk-size", "16385"),
        ("--attention-capture-layers", "first"), ("--attention-api-key", "two words"),
        ("--attention-cors-origins", "example.com"), ("--attention-max-concurrent-capture", "-1"),
        ("--spectral-retention-ratio", "0"), ("--spectral-retention-ratio", "1.1"),
        ("--spectral-retention-ratio", "nan"),
    ],
)  # fmt: skip
def test_what_is_outside_the_ranges_is_refused_by_name(flag: str, value: str) -> None:
    with pytest.raises(ValueError, match=flag):
        flags.options_from(reference.parser().parse_args([f"{flag}={value}"]))
