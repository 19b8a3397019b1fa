"""One request's fields as checked values: what it asked for, within what the server's flags and the model allow.

Pure: no SGLang, no torch. A value out of range is a ValueError whose text names the field and its range.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from geomcli.detectors.observations import HEADS, LINKS, LOGITS
from geomcli.detectors.received import STRONGEST
from geomcli.server_patch import eviction_options, firewall_options
from geomcli.server_patch.firewall_options import Guard
from geomcli.server_patch.server_options import MAX_INT, MAX_TOP_K, SKETCH_HUBS, Mode, ServerOptions, silent_stride

ASK = "return_attention_tokens"
# Fields by which a request asks for something that is captured; the others only say how.
AUTO_SAMPLING = "attention_auto_sampling"
ASKING = (ASK, firewall_options.FIELD, AUTO_SAMPLING, "return_moe_routing")
# What a client sets itself stays, unless it asks for the zone's values.
SAMPLING_FIELDS = ("temperature", "top_p")
_BOOL_FIELDS = (
    ASK,
    "attention_fingerprint_mode",
    "attention_fingerprint_only",
    "attention_sketch_mode",
    "attention_head_stats",
    "attention_logit_stats",
    "attention_prompt_tokens",
    "attention_derotate",
    AUTO_SAMPLING,
    "return_moe_routing",
)
_INT_FIELDS = (
    "top_k_attention",
    "attention_mask_prefix",
    "attention_tokens_stride",
    "attention_tokens_max",
    "attention_tokens_window",
)
_LIST_FIELDS = ("attention_capture_layer_ids", "attention_capture_head_ids")
FIELDS = (*_BOOL_FIELDS, *_INT_FIELDS, *_LIST_FIELDS, firewall_options.FIELD, eviction_options.FIELD)


class CaptureOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One request's capture, resolved against the server's flags and the model; travels to the scheduler as JSON."""

    mode: Mode
    top_k: int
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None  # None: all
    heads_total: int
    mask_prefix: int
    stride: int
    limit: int  # entries a request, 0 = all
    window: int
    sink_tokens: int
    head_stats: bool
    prompt_tokens: bool  # the first entry spells out the prompt
    derotate: bool = False  # content and position scores of each link
    moe_layers: tuple[int, ...] = ()  # layers whose experts each entry names; none: not asked for
    guard: Guard | None = None  # what watches the answer
    auto_sampling: bool = False  # the zone chooses temperature and top_p
    logit_stats: bool = False  # how sure the model was of each token
    retention: float | None = None  # share of its KV that the request keeps, None: all
    entries: bool = True  # whether anything of what is captured leaves the server
    ranked: bool = False  # what is looked at ranks the prefix cache

    @property
    def links(self) -> int:
        """Links that are captured of each row; `top_k` of them leave the server."""
        if self.ranked:
            return MAX_TOP_K
        linked = self.guard is not None and LINKS in self.guard.needs
        return max(self.top_k, STRONGEST) if linked else self.top_k

    @property
    def observed(self) -> bool:
        """Whether the scheduler itself looks at what is captured, which no limit of entries ends."""
        return self.judged or self.ranked

    @property
    def judged(self) -> bool:
        """Whether the scheduler acts on what it sees of an answer."""
        return self.guard is not None or self.auto_sampling

    @property
    def names_kept(self) -> bool:
        """Whether entries say which tokens have left: fingerprints tell no position, and masked ones are in no list."""
        shows = self.entries and self.mode != "fingerprint" and self.mask_prefix == 0
        return shows and self.retention is not None

    @property
    def logits(self) -> bool:
        """Whether logits are looked at."""
        return self.logit_stats or (self.guard is not None and LOGITS in self.guard.needs)

    @property
    def headed(self) -> bool:
        """Whether the statistics of heads are taken."""
        return self.head_stats or (self.guard is not None and HEADS in self.guard.needs)

    @property
    def primary_layer(self) -> int:
        return self.layers[-1]

    def captures(self, output_index: int) -> bool:
        """Whether the step of this output token (0-based) is captured (stride and limit)."""
        number, offset = divmod(output_index, self.stride)
        return offset == 0 and (self.limit == 0 or number < self.limit)

    def watches(self, output_index: int) -> bool:
        """Whether this token's step is captured for the scheduler to look at."""
        return self.observed and output_index % self.stride == 0

    def stops_at(self, output_index: int) -> bool:
        """Whether this token is the first one that would have been captured had the limit not been reached."""
        number, offset = divmod(output_index, self.stride)
        return offset == 0 and self.limit > 0 and number == self.limit

    def first_key(self, query_position: int, sliding_window: int = -1) -> int:
        """First position whose key counts: behind the mask, inside the request's and the layer's window."""
        first = self.mask_prefix
        if self.window:
            first = max(first, query_position + 1 - self.window)
        if sliding_window > -1:
            first = max(first, query_position - sliding_window)
        return min(first, query_position + 1)


class ModelShape(msgspec.Struct, frozen=True):
    """What the scheduler said about the model it loaded."""

    layers_total: int
    layers_captured: tuple[int, ...]
    heads_total: int
    not_derotated: str = ""  # why there is no de-rotated view
    moe_layers: tuple[int, ...] = ()  # layers whose routing can be had
    moe_missing: str = ""  # half a sentence why there are none


def resolve(body: Mapping[str, Any], server: ServerOptions, model: ModelShape) -> CaptureOptions | None:
    """The capture a request body asks for; None if it does not ask. ValueError names the field that is wrong."""
    given = {name: body[name] for name in FIELDS if body.get(name) is not None}
    _check_types(given)
    guard = firewall_options.of_request(body, server.guard, server.calibrations)
    retention = eviction_options.of_request(body, server.retention)
    asked, steered = given.get(ASK, False), of_sampling(body, server)
    asks_to_be_watched = guard is not None and firewall_options.FIELD in given
    if not asked and not asks_to_be_watched and not given.get(AUTO_SAMPLING):
        if given.get("return_moe_routing"):
            raise ValueError(f"return_moe_routing: routing comes with attention entries, ask for {ASK} too")
        return None
    if not server.enabled:
        field = ASK if asked else firewall_options.FIELD if asks_to_be_watched else AUTO_SAMPLING
        raise ValueError(f"{field}: this server was started without --return-attention-tokens")
    eviction_options.check(given, server.retention)
    own = {"attention_tokens_stride": server.stride, "attention_tokens_window": server.window}
    firewall_options.seen_by(given, server.guard, own)
    firewall_options.check_calibrated(guard, given, own)
    mode = _mode(given, server)
    top_k = given.get("top_k_attention", server.top_k)
    _check_range("top_k_attention", top_k, 1, MAX_TOP_K)
    limit = _tightened("attention_tokens_max", given, server.max_entries)
    stride = given.get("attention_tokens_stride", server.stride)
    _check_range("attention_tokens_stride", stride, server.stride, MAX_INT)
    if mode == "fingerprint" and server.max_steps:
        steps = -(-server.max_steps // stride)
        limit = min(limit, steps) if limit else steps
    mask_prefix = given.get("attention_mask_prefix", 0)
    _check_range("attention_mask_prefix", mask_prefix, 0, MAX_INT)
    derotate = given.get("attention_derotate", False)
    if derotate and model.not_derotated:
        raise ValueError(f"attention_derotate: {model.not_derotated}")
    made = CaptureOptions(
        mode=mode,
        top_k={"raw": top_k, "sketch": SKETCH_HUBS, "fingerprint": 0}[mode],
        layers=_ids("attention_capture_layer_ids", given, model.layers_captured, "layers captured by this server")
        or model.layers_captured,
        heads=_ids("attention_capture_head_ids", given, range(model.heads_total), "heads of this model"),
        heads_total=model.heads_total,
        mask_prefix=mask_prefix,
        stride=stride,
        limit=limit,
        window=_tightened("attention_tokens_window", given, server.window),
        sink_tokens=server.sink_tokens,
        head_stats=given.get("attention_head_stats", False),
        prompt_tokens=given.get("attention_prompt_tokens", False),
        derotate=derotate,
        moe_layers=_moe_layers(given, model),
        guard=guard,
        auto_sampling=steered,
        logit_stats=given.get("attention_logit_stats", False),
        retention=server.retention if retention is None else retention,
        entries=asked,
        ranked=server.ranks,
    )
    if guard is not None and guard.layers and (guard.of_layers(made.layers) != guard.layers or made.heads is not None):
        raise ValueError(
            f"{firewall_options.FIELD}.detector: {guard.detector} was calibrated on all heads of the layers "
            f"{_span(guard.layers)}; leave attention_capture_layer_ids and attention_capture_head_ids out"
        )
    return made


def of_sampling(body: Mapping[str, Any], server: ServerOptions) -> bool:
    """Whether the zone chooses what a request is sampled with."""
    asked = body.get(AUTO_SAMPLING)
    if asked is not None:
        return bool(asked)
    params = body.get("sampling_params")
    every = [body, *(params if isinstance(params, list) else [params])]
    own = any(isinstance(one, Mapping) and one.get(name) is not None for one in every for name in SAMPLING_FIELDS)
    return server.auto_sampling and not own


def unasked(body: Mapping[str, Any], server: ServerOptions, model: ModelShape) -> CaptureOptions | None:
    """What the server itself captures of a request that did not ask: for its firewall, sampling, or prefix cache."""
    steered = of_sampling(body, server)
    if not server.enabled or not (server.guard or steered or server.ranks):
        return None
    return CaptureOptions(
        mode="fingerprint", top_k=0, layers=model.layers_captured, heads=None, heads_total=model.heads_total,
        mask_prefix=0, stride=server.stride if steered else silent_stride(server), limit=0, window=server.window,
        sink_tokens=server.sink_tokens, head_stats=False, prompt_tokens=False, guard=server.guard,
        auto_sampling=steered, entries=False, ranked=server.ranks,
    )  # fmt: skip


def _moe_layers(given: Mapping[str, Any], model: ModelShape) -> tuple[int, ...]:
    if not given.get("return_moe_routing", False):
        return ()
    if not model.moe_layers:
        raise ValueError(f"return_moe_routing: {model.moe_missing}")
    return model.moe_layers


def _check_types(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _BOOL_FIELDS and not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {_shown(value)}")
        if name in _INT_FIELDS and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be an integer, got {_shown(value)}")
        if name in _LIST_FIELDS and not (
            isinstance(value, list) and value and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
        ):
            raise ValueError(f"{name} must be a non-empty list of integers, got {_shown(value)}")


def _mode(given: Mapping[str, Any], server: ServerOptions) -> Mode:
    only = server.fingerprint_only or given.get("attention_fingerprint_only", False)
    fingerprint = given.get("attention_fingerprint_mode")
    sketch = given.get("attention_sketch_mode")
    if only:
        why = (
            "this server lets only fingerprints out (--attention-fingerprint-only)"
            if server.fingerprint_only
            else "attention_fingerprint_only was asked for too"
        )
        for name, loosens in (
            ("attention_fingerprint_mode", fingerprint is False),
            ("attention_sketch_mode", sketch),
            ("top_k_attention", "top_k_attention" in given),
            ("attention_head_stats", given.get("attention_head_stats")),
            ("attention_logit_stats", given.get("attention_logit_stats")),
            ("attention_prompt_tokens", given.get("attention_prompt_tokens")),
            ("attention_derotate", given.get("attention_derotate")),
            ("return_moe_routing", given.get("return_moe_routing")),
        ):
            if loosens:
                raise ValueError(f"{name} asks for more than fingerprints, but {why}")
        return "fingerprint"
    if fingerprint and sketch:
        raise ValueError("attention_fingerprint_mode and attention_sketch_mode exclude each other")
    raw = ["top_k_attention"] if "top_k_attention" in given else []
    if given.get("attention_derotate"):
        raw.append("attention_derotate")
    if raw and (fingerprint or sketch):
        other = "attention_fingerprint_mode" if fingerprint else "attention_sketch_mode"
        raise ValueError(f"{raw[0]} asks for raw links, but {other} was asked for too")
    if fingerprint:
        return "fingerprint"
    if sketch:
        return "sketch"
    # Asking for something of the links, or for no fingerprint mode, is asking for raw; else the server's default holds.
    if fingerprint is False or raw:
        return "raw"
    if sketch is False and server.default_mode == "sketch":
        return "raw"
    return server.default_mode


def _tightened(field: str, given: Mapping[str, Any], ceiling: int) -> int:
    """The field's value, 0 meaning all, which a ceiling does not allow."""
    value: int = given.get(field, ceiling)
    if ceiling == 0:
        _check_range(field, value, 0, MAX_INT)
    elif field in given:
        _check_range(field, value, 1, ceiling)
    return value


def _ids(field: str, given: Mapping[str, Any], allowed: Sequence[int], what: str) -> tuple[int, ...] | None:
    if field not in given:
        return None
    known = set(allowed)
    for value in given[field]:
        if value not in known:
            raise ValueError(f"{field}: {value} is not one of the {what}: {_span(allowed)}")
    return tuple(sorted(set(given[field])))


def _check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{field} must be {low}..{high}, got {value}")


def _span(ids: Sequence[int]) -> str:
    if len(ids) > 2 and list(ids) == list(range(ids[0], ids[-1] + 1)):
        return f"{ids[0]}..{ids[-1]}"
    return ", ".join(map(str, ids))


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 3, 60, 60


def _shown(value: Any) -> str:
    # JSON nests deeper than repr does.
    text = _repr.repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
