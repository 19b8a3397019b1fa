"""The prefix cache of the real engine under lru and `spectral`, and what real answers look at.

    python benchmarks/prefix_cache_engine.py record      # for prefix_cache.py to draw from
    python benchmarks/prefix_cache_engine.py compare     # the same requests, one after the other, under both policies

Prompts are made of a few sentences: conversations under system prompts that others share. The default model on this
machine's CPU; `geom serve` must be able to start it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from local_servers import free_port, wait
from prefix_cache import ANSWER, HISTORY, KINDS, QUESTION, RECORDED, SYSTEM, keep

from geomcli.eviction.radix_value import Received
from geomcli.server_patch.server_options import RANKED_STRIDE

GEOM = Path(sys.executable).with_name("geom")
LINKS, SINKS = 64, 4
SENTENCES = (
    "The harbour log lists ships, their masters and what they carried.",
    "A refund is paid within ten days to the card that the order was paid with.",
    "Answer in plain words, name the page that you quote, and say so when you do not know.",
    "The red valve on the second pump must stay closed while the tank is being filled.",
    "In 1821 the mill burned down; the village rebuilt it on the other side of the brook.",
    "Never give medical advice; send the reader to a doctor instead.",
    "Her grandmother kept bees, and the honey paid for the school books.",
    "The train to the coast leaves at seven and stops in every village.",
    "Orders above fifty euros are sent without postage, others cost four euros ninety.",
    "The committee meets on the first Monday of each month in the small hall.",
)
QUESTIONS = (
    "What does the text say about money?", "Who pays for the postage?", "When does the train leave?",
    "What must stay closed?", "Summarise the text in one sentence.", "Write a short poem about the brook.",
    "Which of these is about an animal?", "What happened in 1821?",
)  # fmt: skip


class Piece(NamedTuple):
    text: str
    kind: str


def system(random: np.random.Generator, sentences: int) -> Piece:
    return Piece(f"<|im_start|>system\n{' '.join(random.choice(SENTENCES, sentences))}<|im_end|>\n", SYSTEM)


def question(random: np.random.Generator) -> Piece:
    text = f"<|im_start|>user\n{' '.join(random.choice(QUESTIONS, 2))}<|im_end|>\n<|im_start|>assistant\n"
    return Piece(text, QUESTION)


def answered(asked: Piece, text: str) -> list[Piece]:
    return [Piece(asked.text, HISTORY), Piece(f"{text}<|im_end|>\n", HISTORY)]


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """The URL of `geom serve` with these arguments."""
    port = free_port()
    process = subprocess.Popen([str(GEOM), "serve", "--port", str(port), *arguments], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        wait(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def ask(url: str, pieces: list[Piece], tokens: int, **fields: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    body = {"text": "".join(piece.text for piece in pieces), "sampling_params": sampling, **fields}
    answer = httpx.post(f"{url}/generate", json=body, timeout=600)
    answer.raise_for_status()
    return dict(answer.json())


def record(arguments: argparse.Namespace) -> None:
    """Mean that a token of each part received, part by part, over conversations of one to three turns."""
    random = np.random.default_rng(arguments.seed)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    fields = {"return_attention_tokens": True, "top_k_attention": LINKS, "attention_prompt_tokens": True,
              "attention_tokens_stride": RANKED_STRIDE}  # fmt: skip
    with server() as url:
        for n in range(arguments.requests):
            pieces = [system(random, int(random.integers(2, 12)))]
            for _ in range(n % 3):
                pieces += answered(question(random), " ".join(random.choice(SENTENCES, 3)))
            pieces.append(question(random))
            entries = ask(url, pieces, arguments.tokens, **fields)["attention_tokens"]
            for kind, value in _received(pieces, entries, arguments.tokens):
                found[kind].append(round(value, 4))
    RECORDED.write_text(json.dumps({
        "model": "SmolLM2-135M-Instruct, last layer", "requests": arguments.requests, "tokens": arguments.tokens,
        "stride": RANKED_STRIDE, "links": LINKS, "seed": arguments.seed, "received": found,
    }) + "\n")  # fmt: skip
    print({kind: [len(values), *np.quantile(values, (0.1, 0.5, 0.9)).round(3)] for kind, values in found.items()})


def _received(pieces: list[Piece], entries: list[dict[str, Any]], tokens: int) -> Iterator[tuple[str, float]]:
    received = Received()
    for entry in entries:
        p = np.exp(np.array(entry["topk_logits"]) - entry["logsumexp_candidates"])
        received.observe([(np.array(entry["token_positions"]), p)], query_position=entry["query_position"], first=SINKS)
    prompt = entries[0]["prompt_tokens"]
    begins = np.array([0, *accumulate(len(token) for token in prompt)])[:-1]
    per_token = received.per_token(len(prompt) + tokens)
    at = 0
    for piece in pieces:
        inside = np.flatnonzero((begins >= at) & (begins < at + len(piece.text)))
        at += len(piece.text)
        if not np.isnan(per_token[inside]).all():
            yield piece.kind, float(np.nanmean(per_token[inside]))
    if not np.isnan(own := per_token[len(prompt) :]).all():
        yield ANSWER, float(np.nanmean(own))


def compare(arguments: argparse.Namespace) -> None:
    found = {}
    for policy in arguments.policies:
        small = ("--max-total-tokens", str(arguments.pool), "--context-length", str(arguments.pool // 2))
        with server("--", *small, "--max-running-requests", "1", "--radix-eviction-policy", policy) as url:
            found[policy] = _served(url, arguments)
        print(policy, found[policy], flush=True)
    keep("engine", {
        "settings": {"requests": arguments.requests, "pool": arguments.pool, "tokens": arguments.tokens},
        **found,
    })  # fmt: skip


def _served(url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Five shared system prompts, four conversations at a time of one to four turns; the seed decides alone."""
    random = np.random.default_rng(arguments.seed)
    systems = [system(random, int(n)) for n in random.integers(4, 12, 5)]
    shares = 1 / np.arange(1, 6)
    hits = prompts = 0
    began = time.monotonic()
    running: list[tuple[list[Piece], int]] = []
    for _ in range(arguments.requests):
        while len(running) < 4:
            first = systems[int(random.choice(5, p=shares / shares.sum()))]
            running.append(([first], int(random.integers(1, 5))))
        pieces, left = running.pop(int(random.integers(4)))
        asked = question(random)
        answer = ask(url, [*pieces, asked], arguments.tokens)
        hits += answer["meta_info"]["cached_tokens"]
        prompts += answer["meta_info"]["prompt_tokens"]
        if left > 1:
            running.append(([*pieces, *answered(asked, answer["text"])], left - 1))
    rate = round(hits / prompts, 4)
    return {"hit_rate": rate, "prompt_tokens": prompts, "seconds": round(time.monotonic() - began, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("record", "compare"))
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--tokens", type=int, default=24, help="of an answer")
    parser.add_argument("--pool", type=int, default=1600, help="tokens of the pool that compare leaves the engine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--policies", nargs="+", default=["lru", "spectral"])
    arguments = parser.parse_args()
    os.environ.pop("GEOM_BASE_URL", None)
    {"record": record, "compare": compare}[arguments.command](arguments)


if __name__ == "__main__":
    main()
