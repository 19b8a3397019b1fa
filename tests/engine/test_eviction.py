"""Tokens that leave running requests in the real engine: exact attention over what stays, and clean accounts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from geomcli import models
from geomcli.eviction.retention import Retention
from geomcli.kept import Kept
from tests.engine.harness import TWO_LAYERS, Server, second_plugin, started_directly
from tests.engine.transformers_oracle import forward

SEEN = "seen.jsonl"
# Before each decode step: of every request what is there and where it stands, and the slots that are in use.
WATCHING = """
if in_child:
    import json
    from sglang.srt.managers.schedule_batch import ScheduleBatch
    prepare = ScheduleBatch.prepare_for_decode
    def watched(batch):
        prepare(batch)
        from geomcli.server_patch.held import held_of
        from geomcli.server_patch.scheduler_state import scheduler
        tree, rows = batch.tree_cache, {}
        allocator = tree.token_to_kv_pool_allocator
        for req in batch.reqs:
            held = held_of(req) if scheduler.evictor is not None else None
            there = req.kv.kv_allocated_len
            rows[req.rid] = list(range(there)) if held is None else held.places(there).tolist()
        used = allocator.size - allocator.available_size() - tree.evictable_size()
        with open("seen.jsonl", "a") as file:
            file.write(json.dumps({"used": used, "rows": rows}) + "\\n")
    ScheduleBatch.prepare_for_decode = watched
"""
STRICT = {
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_IDLE": "1",
}
SIZES = (*TWO_LAYERS, "--context-length", "2048", "--enable-metrics")
EVICTING = ("--spectral-evict-decode", "--attention-capture-layers", "0,1")
RAW = {"return_attention_tokens": True, "top_k_attention": 64}
TALE = "The harbour master wrote the names of ships, their masters and cargoes in a log. " * 8


def body(text: str, tokens: int, rid: str | None = None, **fields: Any) -> dict[str, Any]:
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    return {"text": text, "sampling_params": sampling, **({} if rid is None else {"rid": rid}), **fields}


def answer(server: Server, *args: Any, **fields: Any) -> dict[str, Any]:
    response = server.post("/generate", body(*args, **fields))
    assert response.status_code == 200, response.text
    return dict(response.json())


@contextlib.contextmanager
def running(
    folder: Path, *flags: str, sizes: tuple[str, ...] = SIZES, watching: str = WATCHING, overlap: bool = False,
    **environment: str,
) -> Iterator[Server]:  # fmt: skip
    plugin = second_plugin(folder / "second", watching)
    without = ("--disable-overlap-schedule",) if overlap else ()
    environment = {**STRICT, **plugin, **environment}
    with started_directly(folder / "e", *flags, "--", *sizes, without=without, environment=environment) as server:
        yield server


def seen(server: Server, rid: str) -> dict[int, list[int]]:
    """By length of the text, the places that a decode step of this request attends to."""
    found = {}
    for line in (server.log.parent / SEEN).read_text().splitlines():
        if (places := json.loads(line)["rows"].get(rid)) is not None:
            found[places[-1] + 1] = places
    return found


def most_used(server: Server, rid: str) -> int:
    """Slots in use while the request ran."""
    lines = map(json.loads, (server.log.parent / SEEN).read_text().splitlines())
    return max(line["used"] for line in lines if rid in line["rows"])


def clean(server: Server) -> None:
    """Nothing has gone wrong, and the server still answers."""
    assert answer(server, "Still there?", 4)["meta_info"]["completion_tokens"] == 4
    said = [line for line in server.log.read_text().splitlines() if "geom:" in line or "leak" in line.lower()]
    expected = "the firewall halts", "where less than 0.5 stays"
    assert all(any(word in line for word in expected) for line in said), said[-5:]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("off")) as server:
        yield server


@pytest.fixture(scope="module")
def evicting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(
        tmp_path_factory.mktemp("on"), "--spectral-evict-decode", "--attention-capture-layers", "0,1"
    ) as server:
        yield server


def check_kept(entries: list[dict[str, Any]], rows: dict[int, list[int]]) -> set[str]:
    """At every step the tokens that entries say are there are those that were; by which fields they said so."""
    kept = Kept({"tokenIndex": entry["step"] - 1, "kv": entry["kv"]} for entry in entries)
    for entry in entries:
        length, token = entry["query_position"] + 1, entry["step"] - 1
        there = [place for place in range(length) if kept.kept(place, token)]
        assert there == rows.get(length, list(range(length)))
        assert len(there) == entry["kv"]["kept"]
    return {name for entry in entries for name in entry["kv"]} - {"kept", "freed", "share"}


def check_against_dense(server: Server, found: dict[str, Any], prompt_ids: list[int], rid: str) -> int:
    """Every step's links, and the token that came of it, are transformers' over exactly what was there; how many steps
    had let something go."""
    import torch

    folder = models.resolve("smollm2").path
    ids = [*prompt_ids, *found["output_ids"]]
    rows, n = seen(server, rid), len(prompt_ids)
    mask = torch.full((1, 1, len(ids) - 1, len(ids) - 1), float("-inf")).triu(1)
    for length, places in rows.items():
        if length < len(ids):
            mask[0, 0, length - 1] = float("-inf")
            mask[0, 0, length - 1, places] = 0.0
    p, following = forward(folder, ids[:-1], [0, 1], n - 1, depth=2, masks=mask)
    assert following == found["output_ids"]
    gone = 0
    assert check_kept(found["attention_tokens"], rows) == {"left"}
    for entry in found["attention_tokens"]:
        row, length = entry["query_position"] - n + 1, entry["query_position"] + 1
        there = rows.get(length, list(range(length)))
        gone += len(there) < length
        assert entry["kv"]["freed"] == length - len(there)
        assert entry["kv"]["share"] == float(f"{len(there) / length:.6g}")
        for layer in (0, 1):
            links = entry["layers"][str(layer)]
            assert set(links["token_positions"]) <= set(there)
            mean = p[layer][row].mean(axis=0)
            expected = np.sort(mean[there])[::-1][: len(links["token_positions"])]
            shares = np.exp(np.array(links["topk_logits"]) - links["logsumexp_candidates"])
            np.testing.assert_allclose(shares, mean[links["token_positions"]], atol=1e-5)
            np.testing.assert_allclose(shares, expected, atol=1e-5)
    return gone


def ids_of(server: Server, text: str) -> list[int]:
    return list(server.post("/tokenize", {"model": "smollm2", "prompt": text}).json()["tokens"])


@pytest.mark.parametrize(("text", "tokens"), [("The sea", 230), (TALE, 60)], ids=["long answer", "long prompt"])
def test_attention_is_that_of_a_dense_model_over_what_is_there(evicting: Server, text: str, tokens: int) -> None:
    rid = f"dense-{tokens}"
    found = answer(evicting, text, tokens, rid, **RAW)
    assert check_against_dense(evicting, found, ids_of(evicting, text), rid) > tokens // 4


def test_so_it_is_of_many_at_once_that_share_a_prompt_beside_the_overlap_scheduler(tmp_path: Path) -> None:
    texts = [TALE[:300] + tail for tail in ("", "Later", "In the end", "Nobody", "And", "The log")]
    with running(tmp_path, *EVICTING, sizes=(*SIZES, "--chunked-prefill-size", "32"), overlap=True) as server:
        with ThreadPoolExecutor(len(texts)) as pool:
            asked = [pool.submit(answer, server, text, 90 + 9 * n, f"many-{n}", **RAW) for n, text in enumerate(texts)]
            found = [one.result() for one in asked]
        for n, text in enumerate(texts):
            assert check_against_dense(server, found[n], ids_of(server, text), f"many-{n}") > 60
        clean(server)


@pytest.mark.parametrize(
    ("source", "overlap", "more"), [("tap", True, ()), ("probe", False, ("--disable-radix-cache",))]
)
def test_so_it_is_with_the_triton_backend(tmp_path: Path, source: str, overlap: bool, more: tuple[str, ...]) -> None:
    flags = (*EVICTING, "--attention-capture-source", source)
    sizes = (*TWO_LAYERS, "--context-length", "256", "--max-total-tokens", "1024", "--max-running-requests", "4")
    sizes += ("--attention-backend", "triton", *more)
    with running(tmp_path, *flags, sizes=sizes, overlap=overlap, TRITON_INTERPRET="1") as server:
        text = TALE[:400]
        found = answer(server, text, 10, "triton", **RAW)
        assert check_against_dense(server, found, ids_of(server, text), "triton") > 5
        # Another beginning: of a prompt in the prefix cache too few queries are known to score by.
        masked = answer(
            server, f"At sea. {text}", 6, "masked", **RAW, attention_mask_prefix=20, attention_tokens_window=70
        )
        last = masked["attention_tokens"][-1]
        assert last["kv"]["freed"] > 0
        positions = last["layers"]["1"]["token_positions"]
        assert min(positions) >= max(20, last["query_position"] - 69)
        assert last["query_position"] in positions
        clean(server)


def test_with_a_ratio_of_one_every_token_is_that_of_a_server_that_evicts_nothing(tmp_path: Path, plain: Server) -> None:
    asked = [("The sea", 200, {}), (TALE, 40, {}), (TALE, 40, RAW)]
    with running(tmp_path, *EVICTING, "--spectral-retention-ratio", "1.0") as server:
        for text, tokens, fields in asked:
            found, expected = (answer(one, text, tokens, **fields) for one in (server, plain))
            assert found["output_ids"] == expected["output_ids"]
            assert all(entry["kv"]["share"] == 1 for entry in found.get("attention_tokens", ()))
        clean(server)


def test_a_long_request_uses_a_third_of_the_slots(plain: Server, evicting: Server) -> None:
    for server in (plain, evicting):
        answer(server, "The sea", 800, "long")
    off, on = most_used(plain, "long"), most_used(evicting, "long")
    assert off >= 800
    assert on <= 0.35 * off


def test_slots_return_at_once_also_those_of_a_prompt(plain: Server, evicting: Server) -> None:
    for server in (plain, evicting):
        server.post("/flush_cache", {})
        answer(server, TALE + "Then", 30, "prompt")
    n, retention = len(ids_of(plain, TALE + "Then")), Retention(0.3)
    rows = seen(evicting, "prompt")
    assert len(rows[n + 1]) == n + 1
    for length in range(n + 3, n + 30):
        assert len(rows[length]) <= retention.budget(length) + retention.slack(length) + 2
    # What stayed of the prompt is the request's own; the prompt's slots the prefix cache may give up.
    assert most_used(evicting, "prompt") <= n + 3 < most_used(plain, "prompt")


def test_a_request_may_keep_less_but_not_more(evicting: Server) -> None:
    found = answer(evicting, TALE, 200, "less", **RAW, spectral_retention_ratio=0.2)
    assert all(entry["kv"]["share"] <= 0.27 for entry in found["attention_tokens"] if entry["query_position"] > 330)
    answer(evicting, TALE, 60, "silent", spectral_retention_ratio=0.2)
    assert len(seen(evicting, "silent")[len(ids_of(evicting, TALE)) + 50]) < 100
    for path, asked in (
        ("/generate", body(TALE, 4)), ("/v1/completions", {"model": "smollm2", "prompt": "Hi"}),
    ):  # fmt: skip
        refused = evicting.post(path, {**asked, "spectral_retention_ratio": 0.4})
        assert refused.status_code == 400
        assert "spectral_retention_ratio must be above 0 and at most 0.3" in refused.text


def test_what_drifts_keeps_what_it_has(evicting: Server) -> None:
    guard = {"action": "log_only", "window_size": 2, "variance_threshold": 1e-6}
    found = answer(evicting, "The sea", 150, "drifts", **RAW, attention_firewall=guard)
    assert found["attention_tokens"][-1]["firewall"]["status"] == "HALT"
    assert [entry["kv"]["freed"] for entry in found["attention_tokens"]] == [0] * 150


def test_it_says_what_it_does(evicting: Server) -> None:
    names = [f"geom_kv_{name}_tokens_total" for name in ("evicted", "held", "text")]
    before = [_metric(evicting, name) for name in names]
    found = answer(evicting, "The sea", 120, **RAW)
    kv = [entry["kv"] for entry in found["attention_tokens"]]
    evicted, held, text = (_metric(evicting, name) - old for name, old in zip(names, before, strict=True))
    assert evicted == kv[-1]["freed"] > 0
    # What a step attends to has its own token, too; the first token is of the prompt's pass.
    assert (held, text) == (
        sum(one["kept"] - 1 for one in kv[1:]),
        sum(one["kept"] + one["freed"] - 1 for one in kv[1:]),
    )
    share = sum(one["share"] for one in kv[1:]) / len(kv[1:])
    assert held / text == pytest.approx(share, abs=0.1)
    document = evicting.get("/v1/attention/capabilities")
    assert document["features"]["spectral_decode"] is True
    assert document["features"]["derotation"] is False
    assert document["eviction"]["retention_ratio"] == 0.3
    for field in ("attention_derotate", "attention_head_stats"):
        assert evicting.post("/generate", {**body("Hi", 2), **RAW, field: True}).status_code == 400
    clean(evicting)


def _metric(server: Server, name: str) -> float:
    lines = httpx.get(server.url + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


Entries = dict[str, list[dict[str, Any]]]


async def crowd(url: str, count: int, *, at_once: int) -> tuple[Counter[str], Entries]:
    """Requests with shared beginnings, of which a third is aborted or left; how each one ended, and by their ids the
    entries of those that finished."""
    dice, ends, places = random.Random(11), Counter[str](), asyncio.Semaphore(at_once)
    finished: Entries = {}
    # A connection each: the server closes idle ones after 5 s, which a late client would see as a lost answer.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def one(n: int) -> None:
            text = TALE[: dice.choice((60, 200, 320, 500))] + dice.choice(("", "It", f"Number {n}"))
            tokens, end = (
                dice.randrange(5, 130),
                dice.choice(("finish", "finish", "finish", "finish", "abort", "leave")),
            )
            asked = body(text, tokens, f"crowd-{n:03d}", stream=True, **dice.choice(({}, {}, RAW)))
            if dice.random() < 0.3:
                asked["spectral_retention_ratio"] = 0.15
            after, lines = dice.randrange(1, 40), 0
            async with places, client.stream("POST", "/generate", json=asked) as response:
                assert response.status_code == 200
                last, entries = "", []
                async for line in response.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    lines, last = lines + 1, line
                    entries += json.loads(line.removeprefix("data: ")).get("attention_tokens", [])
                    if lines > after and end == "leave":
                        ends["left"] += 1
                        return
                    if lines > after and end == "abort":
                        await client.post("/abort_request", json={"rid": f"crowd-{n:03d}"})
                        end = "aborted"
                meta = json.loads(last.removeprefix("data: "))["meta_info"]
                if end != "aborted":
                    assert meta["completion_tokens"] == tokens
                    finished[f"crowd-{n:03d}"] = entries
                ends[end] += 1

        await asyncio.gather(*(one(n) for n in range(count)))
    return ends, finished


def said_when_taken_back(server: Server, turn: int) -> set[str]:
    """By which fields three long answers, of which one is likely to be taken back, said what has left."""
    texts = [TALE[:300] + tail for tail in ("", "Later", "In the end")]
    rids = [f"back-{turn}-{n}" for n in range(len(texts))]
    with ThreadPoolExecutor(len(texts)) as pool:
        found = list(pool.map(lambda text, rid: answer(server, text, 120, rid, **RAW), texts, rids))
    said = [check_kept(one["attention_tokens"], seen(server, rid)) for one, rid in zip(found, rids, strict=True)]
    return set().union(*said)


def test_accounts_stay_clean_in_a_crowd(tmp_path: Path) -> None:
    """SGLang counts every slot after every step, and takes requests back on purpose; the pool is too small for all."""
    sizes = (*TWO_LAYERS, "--context-length", "1024", "--max-total-tokens", "700", "--chunked-prefill-size", "48")
    with running(tmp_path, *EVICTING, sizes=sizes, overlap=True, SGLANG_TEST_RETRACT="1",
                 SGLANG_TEST_RETRACT_INTERVAL="97") as server:  # fmt: skip
        ends, finished = asyncio.run(crowd(server.url, 150, at_once=12))
        assert ends.total() == 150
        assert min(ends["finish"], ends["left"] + ends["aborted"]) > 20
        log = server.log.read_text()
        assert "Testing retraction" in log
        asked = {rid: entries for rid, entries in finished.items() if entries}
        said = [check_kept(entries, seen(server, rid)) for rid, entries in asked.items()]
        assert "left" in set().union(*said)
        assert any("gone" in said_when_taken_back(server, turn) for turn in range(8))
        # Answers too short for anything to leave: with a cached prompt there are other queries to score by.
        warm = {text: answer(server, text, 25)["output_ids"] for text in (TALE[:60], TALE[:200])}
        for text, expected in warm.items():
            server.post("/flush_cache", {})
            assert answer(server, text, 25)["output_ids"] == expected
        clean(server)


def test_the_checks_see_a_slot_that_does_not_return(tmp_path: Path) -> None:
    keeping = (
        WATCHING
        + """
    from sglang.srt.mem_cache.allocator import TokenToKVPoolAllocator
    free = TokenToKVPoolAllocator.free
    def kept(allocator, slots):
        import sys
        return None if sys._getframe(1).f_code.co_name == "compact" else free(allocator, slots)
    TokenToKVPoolAllocator.free = kept
"""
    )
    with running(tmp_path, *EVICTING, watching=keeping) as server:
        with contextlib.suppress(httpx.HTTPError):
            answer(server, "The sea", 120)
        assert server.process.wait(60) != 0
        assert "Leak Detected" in server.log.read_text()
