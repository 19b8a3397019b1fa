"""docs/reference.md, made from the parser, the checks and the tables below: `python -m geomcli.server_patch.reference`.

Every example is a value that the code accepts; a test tries them all.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

from geomcli.server_patch import flags
from geomcli.server_patch.server_options import MAX_INT, MAX_TOP_K, RANGES

_ANY = "any"
_CEILING = "1..the server's; 0 = all, where the server's is 0"


class Described(NamedTuple):
    """An example, what follows the flag, and its range in words; a number's is in server_options.RANGES."""

    example: str
    range: str = ""


class Field(NamedTuple):
    kind: str
    default: str
    range: str
    example: str
    meaning: str


class Endpoint(NamedTuple):
    request: str
    answer: str
    example: str


FLAGS = {
    "--return-attention-tokens": Described("", "switch"),
    "--attention-fingerprint-mode": Described("", "switch, not beside --attention-sketch-mode"),
    "--attention-fingerprint-only": Described("", "switch, not beside --attention-sketch-mode, --attention-derotate"),
    "--attention-sketch-mode": Described("", "switch, not beside the fingerprint flags"),
    "--attention-tokens-top-k": Described("32"),
    "--attention-tokens-max": Described("1000"),
    "--attention-tokens-stride": Described("2"),
    "--attention-tokens-window": Described("8192"),
    "--attention-capture-layers": Described("0,10,20", "last, auto, mid, or ids below the model's number of layers"),
    "--attention-capture-source": Described("probe", "auto, tap, probe"),
    "--attention-fingerprint-max-steps": Described("0"),
    "--attention-sink-tokens": Described("8"),
    "--attention-chunk-size": Described("4096"),
    "--attention-mask-system-prompt": Described("", "switch"),
    "--attention-derotate": Described("", "switch, not beside --attention-fingerprint-only"),
    "--attention-api-key": Described("a-long-random-key", "printable ASCII without spaces"),
    "--attention-cors-origins": Described("https://example.com", "*, or origins with commas between them"),
    "--attention-max-concurrent-capture": Described("16"),
    "--attention-sidecar-url": Described("tcp://localhost:9001", "tcp://HOST:PORT or ipc://PATH"),
    "--attention-auto-sampling": Described("", "switch"),
    "--attention-firewall": Described("early_stop", "off, log_only, early_stop, re_route"),
    "--attention-firewall-window": Described("16", "2..1024"),
    "--attention-firewall-threshold": Described("0.4", "of the compass above 0 and below 1"),
    "--attention-firewall-detector": Described("logprob", "compass, logprob, rauq, heads, received"),
    "--attention-calibration": Described("heads.npz", "files of geom calibrate"),
    "--spectral-weight": Described("0.5", "0..1"),
    "--spectral-evict-decode": Described("", "switch"),
    "--spectral-retention-ratio": Described("0.5", "above 0, at most 1"),
    "--attention-disable-in-production": Described("", "switch"),
}

FIELDS = {
    "return_attention_tokens": Field("bool", "false", _ANY, "true", "ask for attention"),
    "top_k_attention": Field("int", "the server's", f"1..{MAX_TOP_K}", "16", "links an entry; asks for raw mode"),
    "attention_fingerprint_mode": Field("bool", "the server's", _ANY, "true", "fingerprint mode; false asks for raw"),
    "attention_fingerprint_only": Field("bool", "the server's", _ANY, "true", "nothing but fingerprints; others fail"),
    "attention_sketch_mode": Field("bool", "the server's", _ANY, "true", "sketch mode"),
    "attention_capture_layer_ids": Field("list of int", "all", "captured layers", "[{layer}]", "only these layers"),
    "attention_capture_head_ids": Field("list of int", "all", "0..heads - 1", "[0, 1]", "only these query heads"),
    "attention_mask_prefix": Field("int", "0", "0..", "12", "the first N positions do not exist"),
    "attention_tokens_stride": Field("int", "the server's", "the server's..", "4", "every Nth step"),
    "attention_tokens_max": Field("int", "the server's", _CEILING, "2", "entries"),
    "attention_tokens_window": Field("int", "the server's", _CEILING, "8", "the last N keys"),
    "attention_head_stats": Field("bool", "false", _ANY, "true", "four scalars a head of each captured layer"),
    "attention_logit_stats": Field(
        "bool", "false", _ANY, "true", "how sure the model was of each token, before sampling"
    ),
    "attention_prompt_tokens": Field("bool", "false", _ANY, "true", "the first entry spells out the prompt"),
    "attention_derotate": Field("bool", "false", _ANY, "true", "scores of links by content and by position"),
    "attention_firewall": Field(
        "object or bool",
        "the server's",
        "action, detector, window_size, variance_threshold or threshold; never less strict",
        '{"action": "log_only"}',
        "watch the answer's drift, and end it: `matched_stop`",
    ),
    "attention_auto_sampling": Field(
        "bool", "the server's", _ANY, "true", "the zone chooses temperature and top_p; `sampling` in entries"
    ),
    "spectral_retention_ratio": Field(
        "number",
        "the server's",
        "above 0, at most the server's",
        "0.2",
        "share of its tokens that stays in the KV cache",
    ),
    "return_moe_routing": Field("bool", "false", "models with experts", "true", "experts and weights"),
}

_OPENAI = "OpenAI's body and the fields above"
_ASKING = '{"model": "default", "messages": [{"role": "user", "content": "Hi"}], "return_attention_tokens": true}'
ENDPOINTS = {
    "POST /v1/chat/completions": Endpoint(_OPENAI, "`attention_tokens`, see wire.md", _ASKING),
    "POST /v1/completions": Endpoint(
        _OPENAI,
        "the same",
        '{"model": "default", "prompt": "Hi", "return_attention_tokens": true}',
    ),
    "POST /generate": Endpoint(
        "SGLang's body and the fields above",
        "the same, on each result",
        '{"text": "Hi", "sampling_params": {"max_new_tokens": 8}, "return_attention_tokens": true}',
    ),
    "GET /v1/attention/capabilities": Endpoint("none", "what is true of the running process, see wire.md", ""),
    "GET /metrics": Endpoint("none (with SGLang's --enable-metrics)", "Prometheus text, ours under `geom_`", ""),
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    flags.add_flags(made)
    return made


def actions() -> dict[str, argparse.Action]:
    """Our flags by their first name."""
    return {action.option_strings[0]: action for action in parser()._actions}


def markdown() -> str:
    lines = [
        "# Reference",
        "",
        "Made by `python -m geomcli.server_patch.reference > docs/reference.md`. What the numbers mean: "
        "[wire.md](wire.md), [geometry.md](geometry.md).",
        "",
        "## Flags",
        "",
        "Of `geom serve`, `sglang serve` and `python -m sglang.launch_server`; in a `--config` file without the dashes "
        "in front. A flag is a ceiling: a request can only tighten it.",
        "",
        "| flag | default | range | example | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, action in actions().items():
        told = FLAGS[name]
        names = ", ".join(f"`{option}`" for option in action.option_strings)
        example = f"`{name} {told.example}`" if told.example else f"`{name}`"
        lines.append(f"| {names} | {_default(action)} | {_range(name)} | {example} | {action.help} |")
    lines += [
        "",
        "## Request fields",
        "",
        "Top-level JSON (`extra_body` in the OpenAI SDK). A wrong type, a value out of range or an unknown id is HTTP "
        "400 naming the field and its range.",
        "",
        "| field | type | default | range | example | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for name, field in FIELDS.items():
        example = field.example.replace("{layer}", "35")
        lines.append(f"| `{name}` | {field.kind} | {field.default} | {field.range} | `{example}` | {field.meaning} |")
    lines += ["", "## Endpoints", "", "| endpoint | request | answer | example |", "|---|---|---|---|"]
    for path, endpoint in ENDPOINTS.items():
        method, where = path.split()
        body = f" -H 'Content-Type: application/json' -d '{endpoint.example}'" if method == "POST" else ""
        lines.append(
            f"| `{path}` | {endpoint.request} | {endpoint.answer} | `curl http://127.0.0.1:30000{where}{body}` |"
        )
    return "\n".join(lines) + "\n"


def _range(flag: str) -> str:
    if flag not in RANGES:
        return FLAGS[flag].range
    _, low, high = RANGES[flag]
    return f"{low}.." if high == MAX_INT else f"{low}..{high}"


def _default(action: argparse.Action) -> str:
    value: Any = action.default
    if isinstance(value, list):
        value = ",".join(value)
    return "off" if value is False else f"`{value}`" if value != "" else "none"


if __name__ == "__main__":
    print(markdown(), end="")
