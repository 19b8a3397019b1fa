"""What learned clusters say about what a model was asked to do: the whole way, with a real engine.

    python -P benchmarks/discovery_end_to_end.py [--each 80] [--fresh 24] [--tokens 48] [--json FILE]

`geom serve` pushes the fingerprints of five kinds of prompts to `geom sidecar`; `geom discover` learns from its store;
the sidecar takes the artifacts and classifies the answers to prompts that it has not seen. Reported: cluster by kind of
prompt, adjusted mutual information (Vinh, Epps & Bailey 2010) of clusters with kinds, beside the same with the kinds
shuffled among the requests, and with what a cluster may reflect instead: how far the answer is, how long the prompt is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from local_servers import free_port, wait
from prompt_kinds import KINDS, Prompt, prompts

GEOM = Path(sysconfig.get_path("scripts")) / "geom"
SHUFFLES = 200
STREAMS = 8


class Asked(NamedTuple):
    """prompt_tokens: of the templated prompt; entries: (decode step, fingerprint) of each token of the answer."""

    kind: str
    request: str
    prompt_tokens: int
    entries: list[tuple[int, list[float]]]


def started(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream, start_new_session=True)


def ask(client: httpx.Client, prompt: Prompt, tokens: int) -> Asked:
    body = {
        "model": "smollm2", "messages": [{"role": "user", "content": prompt.text}], "temperature": 0,
        "max_tokens": tokens, "return_attention_tokens": True,
        "attention_fingerprint_mode": True,
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
    entries = [(e["decode_step"], e["fingerprint"]) for e in answer["attention_tokens"] if "fingerprint" in e]
    return Asked(prompt.kind, answer["id"], answer["usage"]["prompt_tokens"], entries)


def ask_all(url: str, asked: list[Prompt], tokens: int) -> list[Asked]:
    with httpx.Client(base_url=url, timeout=600) as client, ThreadPoolExecutor(STREAMS) as pool:
        return list(pool.map(lambda prompt: ask(client, prompt, tokens), asked))


def information(clusters: list[int], requests: list[str], kind_of: dict[str, str], seed: int = 0) -> dict[str, float]:
    """Adjusted mutual information of clusters and kinds, and of kinds shuffled among the requests."""
    from sklearn.metrics import adjusted_mutual_info_score as ami

    rng = random.Random(seed)
    names = sorted(set(requests))
    kinds = [kind_of[name] for name in names]
    found = float(ami([kind_of[name] for name in requests], clusters))
    shuffled = []
    for _ in range(SHUFFLES):
        rng.shuffle(kinds)
        other = dict(zip(names, kinds, strict=True))
        shuffled.append(float(ami([other[name] for name in requests], clusters)))
    return {"found": found, "shuffled_mean": float(np.mean(shuffled)), "shuffled_most": max(shuffled)}


def fifths(values: list[int]) -> list[int]:
    edges = np.quantile(values, (0.2, 0.4, 0.6, 0.8))
    return [int(place) for place in np.searchsorted(edges, values, side="right")]


def described(clusters: list[int], requests: list[str], steps: list[int], asked: list[Asked]) -> dict[str, Any]:
    from sklearn.metrics import adjusted_mutual_info_score as ami

    kind_of = {one.request: one.kind for one in asked}
    length_of = {one.request: one.prompt_tokens for one in asked}
    table: dict[str, dict[str, int]] = {}
    for cluster, request in zip(clusters, requests, strict=True):
        row = table.setdefault(str(cluster), dict.fromkeys(KINDS, 0))
        row[kind_of[request]] += 1
    on = [place for place, cluster in enumerate(clusters) if cluster >= 0]
    made: dict[str, Any] = {
        "table": table,
        "points": len(clusters),
        "on_manifold": len(on) / max(1, len(clusters)),
        "kind": information(clusters, requests, kind_of),
        "kind_without_noise": information([clusters[p] for p in on], [requests[p] for p in on], kind_of),
        "prompt_length": float(ami(fifths([length_of[name] for name in requests]), clusters)),
    }
    if len(set(steps)) > 1:
        made["decode_step"] = float(ami(fifths(steps), clusters))
    return made


def discovered(db: Path, root: Path, unit: str, *flags: str) -> tuple[Path, dict[str, Any]]:
    command = [str(GEOM), "discover", "--db", str(db), "-o", str(root), "--per", unit, "--json", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    manifest = json.loads(done.stdout)
    return root / manifest["run_id"], manifest


def embeddings(run: Path) -> tuple[list[int], list[str], list[int]]:
    from pyarrow import parquet

    table = parquet.read_table(run / "embeddings.parquet", columns=["cluster", "request_id", "step"]).to_pydict()
    return table["cluster"], table["request_id"], table["step"]


def classified(url: str, asked: list[Asked]) -> tuple[list[int], list[float], list[str], list[int]]:
    clusters: list[int] = []
    confidence: list[float] = []
    requests: list[str] = []
    steps: list[int] = []
    for one in asked:
        if not one.entries:
            continue
        answer = httpx.post(url + "/classify", json={"vectors": [values for _, values in one.entries]}, timeout=60)
        for (step, _), result in zip(one.entries, answer.raise_for_status().json()["results"], strict=True):
            clusters.append(result["cluster"])
            confidence.append(result["confidence"])
            requests.append(one.request)
            steps.append(step)
    return clusters, confidence, requests, steps


def by_request(clusters: list[int], requests: list[str]) -> dict[str, Counter[int]]:
    made: dict[str, Counter[int]] = {}
    for cluster, request in zip(clusters, requests, strict=True):
        made.setdefault(request, Counter())[cluster] += 1
    return made


def kinds_from_clusters(
    learnt: dict[str, Counter[int]], fresh: dict[str, Counter[int]], kind_of: dict[str, str]
) -> float:
    """Share of fresh requests whose kind the clusters of their tokens tell: naive Bayes with counts from the learnt."""
    labels = sorted({cluster for counts in (*learnt.values(), *fresh.values()) for cluster in counts})
    counted = {kind: np.ones(len(labels)) for kind in KINDS}
    for request, counts in learnt.items():
        counted[kind_of[request]] += [counts[label] for label in labels]
    log = {kind: np.log(counts / counts.sum()) for kind, counts in counted.items()}
    right = 0
    for request, counts in fresh.items():
        row = np.array([counts[label] for label in labels])
        right += max(KINDS, key=lambda kind: float(row @ log[kind])) == kind_of[request]
    return right / len(fresh)


def shown(title: str, found: dict[str, Any]) -> None:
    print(f"\n{title}: {found['points']} points, {found['on_manifold']:.0%} in a cluster")
    print("| cluster | " + " | ".join(KINDS) + " |\n" + "|---" * (len(KINDS) + 1) + "|")
    for cluster, row in sorted(found["table"].items(), key=lambda item: (item[0] == "-1", int(item[0]))):
        name = "noise" if cluster == "-1" else chr(ord("A") + int(cluster)) if int(cluster) < 26 else cluster
        print(f"| {name} | " + " | ".join(str(row[kind]) for kind in KINDS) + " |")
    for what in ("kind", "kind_without_noise"):
        values = found[what]
        print(f"AMI with {what.replace('_', ' ')}: {values['found']:.3f}; shuffled: mean "
              f"{values['shuffled_mean']:.4f}, at most {values['shuffled_most']:.4f} of {SHUFFLES}")  # fmt: skip
    print(f"AMI with fifths of prompt length: {found['prompt_length']:.3f}"
          + (f", of decode step: {found['decode_step']:.3f}" if "decode_step" in found else ""))  # fmt: skip


def means(asked: list[Asked]) -> list[Asked]:
    """One entry a request, the mean of its fingerprints, as a discovery with a point a request takes them."""
    return [
        one._replace(entries=[(0, np.mean([values for _, values in one.entries], axis=0).tolist())])
        for one in asked
        if one.entries
    ]


def of_fresh(
    unit: str, url: str, answered: list[Asked], learnt: dict[str, Counter[int]], kind_of: dict[str, str]
) -> dict[str, Any]:
    """What the sidecar at `url` makes of prompts that nothing was learnt from."""
    labels, confidence, requests, steps = classified(url, answered)
    found = described(labels, requests, steps, answered)
    kind_of = kind_of | {one.request: one.kind for one in answered}
    told = kinds_from_clusters(learnt, by_request(labels, requests), kind_of)
    found |= {"confidence": float(np.mean(confidence)), "requests": len(answered), "kind_told": told}
    shown(f"New prompts, a point a {unit}, POST /classify", found)
    print(f"mean confidence {np.mean(confidence):.3f}; kind told from a request's clusters: {told:.0%} of "
          f"{len(answered)} (a fifth by chance)")  # fmt: skip
    return found


def reloaded(url: str, root: Path, run: Path) -> None:
    """Let the sidecar at `url`, whose discovery is in `root`, classify by another run."""
    (root / "latest").unlink(missing_ok=True)
    (root / "latest").symlink_to(run, target_is_directory=True)
    httpx.post(url + "/discovery/reload", timeout=60).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=80, help="prompts of each kind to learn from")
    parser.add_argument("--fresh", type=int, default=24, help="prompts of each kind to classify")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--layers", default="last", help="what --attention-capture-layers gets")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    folder = Path(tempfile.mkdtemp(prefix="geom-discovery-"))
    zmq_url, http_port, port = f"tcp://127.0.0.1:{free_port()}", free_port(), free_port()
    url, sidecar_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{http_port}"
    db, root = folder / "traffic.db", folder / "discovery"
    logs = folder / "sidecar.out", folder / "engine.out"
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.append(started([
            str(GEOM), "sidecar", "--db", str(db), "--zmq-bind", zmq_url, "--port", str(http_port),
            "--discovery-dir", str(root),
        ], logs[0]))  # fmt: skip
        running.append(started([
            str(GEOM), "serve", "--port", str(port), "--log", str(folder / "engine.log"),
            "--attention-sidecar-url", zmq_url, "--attention-capture-layers", arguments.layers,
        ], logs[1]))  # fmt: skip
        wait(sidecar_url, running[0], f"See {logs[0]}")
        wait(url, running[1], f"See {logs[1]}")
        every = prompts(arguments.each + arguments.fresh)
        counted: Counter[str] = Counter()
        learn, fresh = [], []
        for prompt in every:
            (learn if counted[prompt.kind] < arguments.each else fresh).append(prompt)
            counted[prompt.kind] += 1
        began = time.perf_counter()
        asked = ask_all(url, learn, arguments.tokens)
        seconds = time.perf_counter() - began
        tokens = sum(len(one.entries) for one in asked)
        print(f"{len(asked)} prompts, {tokens} tokens with a fingerprint, {seconds:.0f} s")
        flushed = httpx.post(sidecar_url + "/storage/flush", timeout=60).raise_for_status().json()
        pushed = httpx.get(url + "/v1/attention/capabilities", timeout=30).json()["sidecar"]
        print(f"pushed {pushed['sent']}, dropped {pushed['dropped']}, stored {flushed['stored']}")

        result: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"), "prompts": len(asked), "tokens": tokens, "seconds": seconds,
            "pushed": pushed, "stored": flushed["stored"],
            "arguments": {k: str(v) for k, v in vars(arguments).items() if k != "json"},
            "python": platform.python_version(), "cpus": os.cpu_count(),
        }  # fmt: skip
        smallest = ["--min-cluster-size", str(max(5, len(asked) // 40))]
        _, per_request = discovered(db, folder / "by-request", "request", "--no-umap", *smallest)
        run, manifest = discovered(db, root, "token")
        labels, requests, steps = embeddings(run)
        kind_of = {one.request: one.kind for one in asked}
        known = [place for place, name in enumerate(requests) if name in kind_of]
        labels, requests, steps = ([column[p] for p in known] for column in (labels, requests, steps))  # type: ignore[assignment]
        result["learnt"] = described(labels, requests, steps, asked)
        result["clusters"] = [{k: c[k] for k in ("cluster", "name", "size")} for c in manifest["clusters"]]
        result["calibration"] = manifest["calibration"]
        shown("Learnt, a point a token", result["learnt"])
        r_labels, r_requests, _ = embeddings(folder / "by-request" / per_request["run_id"])
        result["by_request"] = described(r_labels, r_requests, [0] * len(r_labels), asked)
        shown("Learnt, a point a request", result["by_request"])

        answered = ask_all(url, fresh, arguments.tokens)
        for unit, found, of, learnt, points in (
            ("token", manifest, run, by_request(labels, requests), answered),
            ("request", per_request, folder / "by-request" / per_request["run_id"],
             by_request(r_labels, r_requests), means(answered)),
        ):  # fmt: skip
            if found["clusters"]:
                reloaded(sidecar_url, root, of)
                result[f"fresh_{unit}"] = of_fresh(unit, sidecar_url, points, learnt, kind_of)
            else:
                print(f"\nNo cluster with a point a {unit}: there is nothing to classify new prompts by.")
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    finally:
        for process in reversed(running):
            os.killpg(process.pid, signal.SIGTERM)
        for process in running:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
