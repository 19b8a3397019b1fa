"""What a request may ask of a server: every flag is a ceiling, every refusal names its field."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

import msgspec
import pytest

from geomcli.server_patch import flags
from geomcli.server_patch.options import CaptureOptions, ModelShape, ServerOptions, parse_layers, resolve
from geomcli.server_patch.plans import first_key
from geomcli.server_patch.request_state import RequestState

MODEL = ModelShape(30, (7, 15, 22, 29), 9)
ON = ServerOptions(enabled=True)
ASK = {"return_attention_tokens": True}


def asked(server: ServerOptions = ON, **fields: Any) -> CaptureOptions:
    options = resolve({**ASK, **fields}, server, MODEL)
    assert options is not None
    return options


def test_not_asking_is_no_capture() -> None:
    assert resolve({}, ON, MODEL) is None
    assert resolve({"return_attention_tokens": False, "top_k_attention": 3}, ON, MODEL) is None
    assert resolve({"return_attention_tokens": None}, ON, MODEL) is None


def test_defaults_follow_the_server() -> None:
    options = asked()
    assert (options.mode, options.top_k, options.layers, options.heads) == ("raw", 16, (7, 15, 22, 29), None)
    assert (options.limit, options.stride, options.window, options.sink_tokens) == (4096, 1, 0, 4)
    assert options.primary_layer == 29
    assert asked(ServerOptions(enabled=True, sketch_mode=True)).mode == "sketch"
    fingerprint = asked(ServerOptions(enabled=True, fingerprint_mode=True))
    assert (fingerprint.mode, fingerprint.top_k, fingerprint.limit) == ("fingerprint", 0, 256)


@pytest.mark.parametrize(
    ("server", "fields", "mode"),
    [
        ({}, {"attention_fingerprint_mode": True}, "fingerprint"),
        ({}, {"attention_sketch_mode": True}, "sketch"),
        ({"fingerprint_mode": True}, {"top_k_attention": 5}, "raw"),
        ({"fingerprint_mode": True}, {"attention_fingerprint_mode": False}, "raw"),
        ({"fingerprint_mode": True}, {"attention_sketch_mode": True}, "sketch"),
        ({"sketch_mode": True}, {"attention_sketch_mode": False}, "raw"),
        ({"fingerprint_only": True}, {}, "fingerprint"),
        ({"fingerprint_only": True}, {"attention_fingerprint_mode": True}, "fingerprint"),
    ],
)
def test_modes(server: dict[str, bool], fields: dict[str, Any], mode: str) -> None:
    assert asked(ServerOptions(enabled=True, **server), **fields).mode == mode  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("server", "fields", "message"),
    [
        ({"enabled": False}, {}, "started without --return-attention-tokens"),
        ({"stride": 4}, {"attention_tokens_stride": 2}, r"attention_tokens_stride must be 4\.\."),
        ({"window": 100}, {"attention_tokens_window": 0}, r"attention_tokens_window must be 1\.\.100"),
        ({"window": 100}, {"attention_tokens_window": 101}, r"attention_tokens_window must be 1\.\.100"),
        ({"max_entries": 10}, {"attention_tokens_max": 0}, r"attention_tokens_max must be 1\.\.10"),
        ({"fingerprint_only": True}, {"attention_head_stats": True}, "attention_head_stats asks for more"),
        ({"fingerprint_only": True}, {"attention_prompt_tokens": True}, "attention_prompt_tokens asks for more"),
        ({"fingerprint_only": True}, {"return_moe_routing": True}, "return_moe_routing asks for more"),
        ({"fingerprint_only": True}, {"attention_fingerprint_mode": False}, "lets only fingerprints out"),
    ],
)
def test_a_request_can_only_tighten(server: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(ServerOptions(**{"enabled": True, **server}), **fields)


def test_tightening_works() -> None:
    server = ServerOptions(enabled=True, stride=2, window=100, max_entries=50)
    options = asked(server, attention_tokens_stride=6, attention_tokens_window=10, attention_tokens_max=5)
    assert (options.stride, options.window, options.limit) == (6, 10, 5)
    steps = asked(server, attention_fingerprint_mode=True, attention_tokens_stride=100)
    assert steps.limit == 3  # 256 steps, every 100th


def test_options_survive_the_way_to_the_scheduler() -> None:
    options = asked(attention_capture_head_ids=[8, 1, 1], attention_capture_layer_ids=[15])
    assert (options.heads, options.layers) == ((1, 8), (15,))
    assert msgspec.json.decode(msgspec.json.encode(options), type=CaptureOptions) == options


@pytest.mark.parametrize(
    ("spec", "layers"),
    [("last", (29,)), ("mid", (15,)), ("auto", (7, 15, 22, 29)), ("0,10, 20", (0, 10, 20)), ("3,3", (3,))],
)
def test_layer_specs(spec: str, layers: tuple[int, ...]) -> None:
    assert parse_layers(spec, 30) == layers


@pytest.mark.parametrize("spec", ["30", "-1", "first", "", "1,,2"])
def test_wrong_layer_specs_name_the_flag(spec: str) -> None:
    with pytest.raises(ValueError, match="--attention-capture-layers"):
        parse_layers(spec, 30)


def test_flags_round_trip_and_out_of_range_flags_are_named() -> None:
    parser = ArgumentParser()
    flags.add_flags(parser)
    assert flags.options_from(parser.parse_args([])) == ServerOptions()
    parsed = parser.parse_args(["--return-attention-tokens", "--attention-capture-stride", "3"])
    assert flags.options_from(parsed) == ServerOptions(enabled=True, stride=3)
    for arguments, name in (
        (["--attention-tokens-top-k", "0"], "--attention-tokens-top-k must be 1..64"),
        (["--attention-tokens-stride", "0"], "--attention-tokens-stride must be 1.."),
        (["--attention-sink-tokens", "-1"], "--attention-sink-tokens must be 0..1024"),
        (["--attention-sketch-mode", "--attention-fingerprint-only"], "exclude each other"),
    ):
        with pytest.raises(ValueError, match=name):
            flags.options_from(parser.parse_args(arguments))


def test_stride_and_limit_decide_which_tokens_are_captured() -> None:
    state = RequestState(asked(attention_tokens_stride=3, attention_tokens_max=2))
    assert [i for i in range(20) if state.captures(i)] == [0, 3]
    assert [i for i in range(20) if state.stops_at(i)] == [6]


def test_the_first_key_is_behind_the_mask_and_inside_every_window() -> None:
    options = asked(attention_mask_prefix=5, attention_tokens_window=20)
    assert first_key(options, 10) == 5
    assert first_key(options, 100) == 81
    assert first_key(options, 100, sliding_window=7) == 93
    assert first_key(options, 3) == 4  # everything is masked
