"""What a request may ask of a server: every flag is a ceiling, every refusal names its field."""

from __future__ import annotations

import math
from argparse import ArgumentParser
from typing import Any

import msgspec
import pytest

from geomcli.server_patch import flags
from geomcli.server_patch.firewall_options import Guard
from geomcli.server_patch.request_options import CaptureOptions, ModelShape, resolve, unasked
from geomcli.server_patch.request_state import RequestState
from geomcli.server_patch.server_options import ServerOptions, parse_layers

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
        ({"fingerprint_mode": True}, {"attention_derotate": True}, "raw"),
        ({"sketch_mode": True}, {"attention_derotate": True, "top_k_attention": 3}, "raw"),
        ({"sketch_mode": True}, {"attention_derotate": False}, "sketch"),
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


@pytest.mark.parametrize(
    ("server", "fields", "message"),
    [
        ({}, {"attention_fingerprint_mode": True}, "attention_derotate asks for raw links, but attention_fingerprint_"),
        ({}, {"attention_sketch_mode": True}, "attention_derotate asks for raw links, but attention_sketch_mode"),
        ({}, {"attention_fingerprint_only": True}, "attention_derotate asks for more than fingerprints"),
        ({"fingerprint_only": True}, {}, "attention_derotate asks for more than fingerprints"),
    ],
)
def test_the_derotated_view_is_one_of_raw_links(server: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asked(ServerOptions(**{"enabled": True, **server}), attention_derotate=True, **fields)


def test_the_derotated_view_is_refused_with_the_reason_of_this_server() -> None:
    model = ModelShape(30, (29,), 9, "the reason")
    with pytest.raises(ValueError, match=r"^attention_derotate: the reason$"):
        resolve({**ASK, "attention_derotate": True}, ON, model)
    options = resolve({**ASK, "attention_derotate": False}, ON, model)
    assert options is not None
    assert not options.derotate
    assert asked(attention_derotate=True).derotate


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
    parsed = parser.parse_args(["--attention-mask-system-prompt", "--attention-chunk-size", "512"])
    assert flags.options_from(parsed) == ServerOptions(mask_system_prompt=True, chunk_size=512)
    guarded = parser.parse_args(
        ["--attention-api-key", "k", "--attention-max-concurrent-capture", "2", "--attention-cors-origins", "http://a",
         "http://b,http://c"]
    )  # fmt: skip
    assert flags.options_from(guarded) == ServerOptions(
        api_key="k", max_concurrent=2, cors_origins="http://a,http://b,http://c"
    )
    for arguments, name in (
        (["--attention-max-concurrent-capture", "-1"], "--attention-max-concurrent-capture must be 0.."),
        (["--attention-cors-origins", "a"], "--attention-cors-origins must be"),
        (["--attention-sidecar-url", "localhost:9001"], "--attention-sidecar-url must be tcp://HOST:PORT"),
        (["--attention-sidecar-url", "tcp://localhost:0"], "--attention-sidecar-url must be tcp://HOST:PORT"),
        (["--attention-sidecar-url", "tcp://localhost:99999"], "--attention-sidecar-url must be tcp://HOST:PORT"),
        (["--attention-firewall", "early_stop"], "--attention-firewall early_stop .* --return-attention-tokens"),
        (["--attention-firewall-window", "1"], "--attention-firewall-window must be 2.."),
        (
            ["--attention-firewall-threshold", "1"],
            "--attention-firewall-threshold must be a number above 0",
        ),
        (["--attention-firewall-threshold", "nan"], "--attention-firewall-threshold must be"),
        (
            ["--attention-firewall", "log_only", "--attention-firewall-detector", "logprob"],
            "has no threshold without",
        ),
        (
            [
                "--return-attention-tokens",
                "--attention-firewall",
                "log_only",
                "--attention-firewall-window",
                "2",
                "--attention-firewall-threshold",
                "0.6",
            ],
            "can never halt: the drift of 2 tokens is at most 0.5",
        ),
        (["--attention-auto-sampling"], "--attention-auto-sampling watches what is captured"),
        (["--spectral-weight", "-0.1"], "--spectral-weight must be 0..1, got -0.1"),
        (["--spectral-weight", "nan"], "--spectral-weight must be 0..1, got nan"),
        (["--spectral-evict-decode"], "--spectral-evict-decode .* --return-attention-tokens"),
        (["--spectral-retention-ratio", "0"], "--spectral-retention-ratio must be above 0"),
        (["--attention-tokens-top-k", "0"], "--attention-tokens-top-k must be 1..64"),
        (["--attention-tokens-stride", "0"], "--attention-tokens-stride must be 1.."),
        (["--attention-sink-tokens", "-1"], "--attention-sink-tokens must be 0..1024"),
        (["--attention-chunk-size", "255"], "--attention-chunk-size must be 256..16384"),
        (["--attention-chunk-size", "16385"], "--attention-chunk-size must be 256..16384"),
        (["--attention-sketch-mode", "--attention-fingerprint-only"], "exclude each other"),
        (["--attention-derotate", "--attention-fingerprint-only"], "--attention-derotate and .* exclude each other"),
    ):
        with pytest.raises(ValueError, match=name):
            flags.options_from(parser.parse_args(arguments))


EVICTING = ServerOptions(enabled=True, retention=0.5)


def test_a_request_keeps_the_share_of_the_server_or_less() -> None:
    for given, expected in ((None, 0.5), (0.5, 0.5), (0.2, 0.2)):
        fields = {} if given is None else {"spectral_retention_ratio": given}
        found = resolve({"return_attention_tokens": True, **fields}, EVICTING, MODEL)
        assert found is not None
        assert found.retention == expected


@pytest.mark.parametrize("given", [0, -0.1, 0.51, 1, True, "0.3", math.nan, math.inf, [0.3]])
@pytest.mark.parametrize("asking", [True, False])
def test_a_share_that_cannot_be_is_named(given: Any, asking: bool) -> None:
    body = {"spectral_retention_ratio": given, "return_attention_tokens": asking}
    with pytest.raises(ValueError, match=r"spectral_retention_ratio must be above 0 and at most 0\.5"):
        resolve(body, EVICTING, MODEL)
    with pytest.raises(ValueError, match="evicts nothing"):
        resolve(body, ServerOptions(enabled=True), MODEL)


@pytest.mark.parametrize("field", ["attention_derotate", "attention_head_stats"])
def test_what_needs_every_key_is_refused_where_keys_leave(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field} cannot be had where keys leave"):
        resolve({"return_attention_tokens": True, field: True}, EVICTING, MODEL)


@pytest.mark.parametrize(("debug", "on"), [(None, False), ("1", True), ("true", False), ("0", False)])
def test_in_production_capture_is_off(monkeypatch: pytest.MonkeyPatch, debug: str | None, on: bool) -> None:
    parser = ArgumentParser()
    flags.add_flags(parser)
    monkeypatch.delenv("GEOM_DEBUG", raising=False)
    if debug is not None:
        monkeypatch.setenv("GEOM_DEBUG", debug)
    found = flags.options_from(parser.parse_args(["--return-attention-tokens", "--attention-disable-in-production"]))
    assert found == ServerOptions(enabled=on, disable_in_production=not on)


def test_stride_and_limit_decide_which_tokens_are_captured() -> None:
    state = RequestState(asked(attention_tokens_stride=3, attention_tokens_max=2))
    assert [i for i in range(20) if state.captures(i)] == [0, 3]
    assert [i for i in range(20) if state.options.stops_at(i)] == [6]


def test_the_first_key_is_behind_the_mask_and_inside_every_window() -> None:
    options = asked(attention_mask_prefix=5, attention_tokens_window=20)
    assert options.first_key(10) == 5
    assert options.first_key(100) == 81
    assert options.first_key(100, sliding_window=7) == 93
    assert options.first_key(3) == 4  # everything is masked


def test_where_the_prefix_cache_is_ranked_every_request_is_captured_now_and_then() -> None:
    server = ServerOptions(enabled=True, spectral_radix=True, stride=2)
    silent = unasked({}, server, MODEL)
    assert silent is not None
    assert (silent.ranked, silent.entries, silent.stride, silent.limit, silent.top_k, silent.links) == (
        True, False, 8, 0, 0, 64,
    )  # fmt: skip
    guarded = unasked({}, msgspec.structs.replace(server, guard=Guard("log_only")), MODEL)
    assert guarded is not None
    assert (guarded.ranked, guarded.stride) == (True, 2)
    asking = resolve({**ASK, "top_k_attention": 5}, server, MODEL)
    assert asking is not None
    assert (asking.ranked, asking.top_k, asking.links) == (True, 5, 64)


@pytest.mark.parametrize("change", [{"spectral_radix": False}, {"spectral_weight": 0.0}, {"enabled": False}])
def test_where_it_is_not_ranked_nothing_is_captured_for_it(change: dict[str, Any]) -> None:
    server = msgspec.structs.replace(ServerOptions(enabled=True, spectral_radix=True), **change)
    assert unasked({}, server, MODEL) is None
    assert asked(attention_tokens_stride=3).links == asked(attention_tokens_stride=3).top_k
