"""Importers: numbers as the formulas have them, files told by their content, every odd file named."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import geomcli
from geomcli import array_files, jsonl
from geomcli.attention_dumps import read_dump
from geomcli.errors import TraceError, UsageError
from geomcli.importers import records_of
from geomcli.links import links_of, texts_by_position
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.trace_import import import_traces

PROMPT, OUTPUTS, LAYERS, HEADS = 7, 6, 3, 4
LENGTH = PROMPT + OUTPUTS
TEXTS = [f"t{n} " for n in range(LENGTH)]
META = {"prompt_len": PROMPT, "tokens": TEXTS, "model": "tiny", "created": 7}


def attention(seed: int = 0) -> np.ndarray:
    """Causal softmax rows [layers, heads, T, T]."""
    logits = np.random.default_rng(seed).normal(size=(LAYERS, HEADS, LENGTH, LENGTH)) * 2
    logits = np.where(np.tril(np.ones((LENGTH, LENGTH), bool)), logits, -np.inf)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    made: np.ndarray = p / p.sum(axis=-1, keepdims=True)
    return made


def write(path: Path, arrays: dict[str, np.ndarray], meta: Any = META) -> Path:
    if path.suffix == ".npz":
        np.savez(path, meta=np.array(json.dumps(meta)), **arrays)
    else:
        save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, path, metadata={"meta": json.dumps(meta)})
    return path


def by_layer(p: np.ndarray) -> dict[str, np.ndarray]:
    return {f"attentions.{layer}": p[layer] for layer in range(LAYERS)}


def by_step(p: np.ndarray) -> dict[str, np.ndarray]:
    """As generate() returns them: the prompt's rows at first, then one row a step; a batch of one."""
    made = {}
    for step in range(OUTPUTS):
        first, last = (0, PROMPT) if step == 0 else (PROMPT + step - 1, PROMPT + step)
        for layer in range(LAYERS):
            made[f"attentions.{step}.{layer}"] = p[None, layer, :, first:last, :last]
    return made


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_every_layout_gives_the_same_trace(tmp_path: Path, suffix: str) -> None:
    p = attention()
    made = [
        read_dump(write(tmp_path / f"{name}{suffix}", arrays))
        for name, arrays in (("stacked", {"attentions": p}), ("layers", by_layer(p)), ("steps", by_step(p)))
    ]
    for trace in made:
        assert trace[0].pop("imported")["format"] == "hf-attentions"
    assert made[0] == made[1] == made[2]
    assert made[0][0]["created"] == 7
    assert made[0][0]["trace_id"].startswith("hf-")


def test_the_numbers_by_hand(tmp_path: Path) -> None:
    p = attention(1)
    trace = Trace(read_dump(write(tmp_path / "x.npz", by_layer(p)), layers=[1], top_k=5))
    assert [t["text"] for t in trace.tokens] == TEXTS[PROMPT:]
    assert texts_by_position(trace) == dict(enumerate(TEXTS))
    assert trace.messages[0]["content"] == "".join(TEXTS[:PROMPT])
    assert trace.messages[-1] == {"record_type": "message", "id": "assistant-1", "role": "assistant",
                                  "content": "".join(TEXTS[PROMPT:])}  # fmt: skip
    for i, step in enumerate(trace.steps):
        m = PROMPT + i - 1
        row = p[1, :, m, : m + 1]
        mean = row.mean(axis=0)
        hist = np.zeros(16)
        for n in range(4, m + 1):
            distance = m - n
            hist[0 if distance < 2 else int(np.log2(distance))] += mean[n]
        hist /= hist.sum()
        assert step["fingerprint"][4:] == pytest.approx(hist, rel=1e-5, abs=1e-9)
        assert step["fingerprint"][0] == pytest.approx(hist[:3].sum(), rel=1e-5)
        assert step["entropy_bits"] == pytest.approx(-(row * np.log2(row)).sum(axis=1).mean(), rel=1e-5)
        assert step["sink_mass"] == pytest.approx(mean[:4].sum(), rel=1e-5)
        links = links_of(step)
        assert [link.position for link in links] == np.argsort(-mean)[:5].tolist()
        assert [link.probability for link in links] == pytest.approx(np.sort(mean)[::-1][:5].tolist(), rel=1e-5)
        assert (step["query_position"], step["prompt_len"], step["heads"]) == (m, PROMPT, {"seen": 4, "total": 4})


def test_several_layers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", by_layer(attention(2)))
    step = Trace(read_dump(path)).steps[0]
    assert step["layer_id"] == 2
    assert list(step["attention"]["layers"]) == ["0", "1", "2"]
    own = [Trace(read_dump(path, layers=[n])).steps[0] for n in range(LAYERS)]
    assert step["fingerprint"][4:] == pytest.approx(
        np.mean([s["fingerprint"][4:] for s in own], axis=0), rel=1e-4, abs=1e-6
    )
    for n, other in enumerate(own):
        assert links_of(step, n) == links_of(other)


def test_into_the_store_and_out_again(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", by_layer(attention().astype(np.float32)))
    with Store(tmp_path / "t.db") as store:
        (first,) = import_traces(store, records_of(str(path), []))
        (again,) = import_traces(store, records_of(str(path), []))
        assert (first.status, again.status) == ("added", "identical")
        out = tmp_path / "x.jsonl"
        out.write_text(jsonl.dump(store.records(first.trace_id)))
        assert jsonl.load(out)[0][0]["imported"] == {"format": "hf-attentions", "file": "x.safetensors"}
        row = store.rows("SELECT complete, tokens, title FROM traces")[0]
        assert (row["complete"], row["tokens"], row["title"]) == (1, OUTPUTS, "t0 t1 t2 t3 t4 t5 t6")


@pytest.mark.parametrize(("dtype", "close"), [(np.float16, 2e-2), (np.float32, 1e-4)])
def test_narrow_numbers(tmp_path: Path, dtype: Any, close: float) -> None:
    p = attention(3)
    exact = Trace(read_dump(write(tmp_path / "x.npz", by_layer(p))))
    rough = Trace(read_dump(write(tmp_path / "y.npz", by_layer(p.astype(dtype)))))
    for a, b in zip(exact.steps, rough.steps, strict=True):
        assert a["fingerprint"] == pytest.approx(b["fingerprint"], abs=close)


def test_bfloat16(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_tensors

    p = torch.tensor(attention(4))
    path = tmp_path / "x.safetensors"
    arrays = {f"attentions.{n}": p[n].to(torch.bfloat16) for n in range(LAYERS)}
    save_tensors(arrays, path, metadata={"meta": json.dumps(META)})
    with array_files.open_arrays(path) as opened:
        assert np.array_equal(opened.array("attentions.1"), arrays["attentions.1"].float().numpy())
    assert len(Trace(read_dump(path)).steps) == OUTPUTS


def broken(name: str) -> tuple[dict[str, np.ndarray], Any]:
    p = attention()
    one = {"attentions.0": p[0]}
    looks_ahead = p.copy()
    looks_ahead[1, :, PROMPT] = 1 / LENGTH
    logits = {"attentions": np.log(p + 1e-9)}
    steps = by_step(p)
    return {
        "no meta": ({"attentions": p}, None),
        "no prompt_len": ({"attentions": p}, {"model": "x"}),
        "prompt_len 0": ({"attentions": p}, {"prompt_len": 0}),
        "all prompt": ({"attentions": p}, {"prompt_len": LENGTH}),
        "no arrays": ({"x": p}, META),
        "integers": ({"attentions": p.astype(np.int32)}, META),
        "logits": (logits, META),
        "not causal": ({"attentions": looks_ahead}, META),
        "shape": ({"attentions.0": p[0, :, :, :5]}, META),
        "flat": ({"attentions.0": p[0, 0]}, META),
        "batch": ({"attentions.0": np.stack([p[0], p[0]])}, META),
        "layers": ({"attentions": p}, {**META, "layers": [1]}),
        "a step is missing": ({k: v for k, v in steps.items() if not k.startswith("attentions.2.")}, META),
        "no step 0": ({k: v for k, v in steps.items() if not k.startswith("attentions.0.")}, META),
        "short step": ({**steps, "attentions.3.1": steps["attentions.3.1"][..., :-1]}, META),
        "both": ({**steps, "attentions.0": p[0]}, META),
        "nan": ({"attentions": np.where(p > 0.9, np.nan, p)}, META),
        "a third": ({"attentions": p * 0.3}, META),
        "half a row": ({"attentions": np.where(np.arange(HEADS)[None, :, None, None] == 2, p / 2, p)}, META),
        "negative": ({"attentions": -p}, META),
        "thin ahead": ({"attentions": np.full((1, 2, 400, 400), 1 / 400)}, {"prompt_len": 390}),
        "one layer twice": ({"attentions": p}, {**META, "layers": [1, 1, 0]}),
        "layer -1": ({"attentions": p}, {**META, "layers": [-1, 3, 4]}),
        "stacked and single": ({"attentions": p, **one}, META),
        "zero in front": ({"attentions.01": p[0]}, META),
        "step with zeros": ({"attentions.00.0": p[0]}, META),
        "23 digits": ({"attentions." + "9" * 23: p[0]}, META),
        "no year": ({"attentions": p}, {**META, "created": 2**63}),
        "few texts": ({"attentions": p}, {**META, "tokens": ["a"]}),
        "many texts": (steps, {**META, "tokens": [*TEXTS, "x"]}),
    }[name]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no meta", "Expected `object`"),
        ("no prompt_len", "missing required field `prompt_len`"),
        ("prompt_len 0", "prompt_len must be at least 1"),
        ("all prompt", "13 positions, and the prompt has 13"),
        ("no arrays", "has no `attentions`.*; it has `x`"),
        ("integers", "is no floating point number"),
        ("logits", "these are no probabilities"),
        ("not causal", "layer 1: position 7 looks at later ones"),
        ("shape", r"not \(heads, T, T\)"),
        ("flat", r"`attentions\.0` has shape \(13, 13\)"),
        ("batch", r"`attentions\.0` has an array of shape \(2, 4, 13, 13\)"),
        ("layers", "3 layers, and `meta` names 1"),
        ("a step is missing", "step 2 does not have the layers of step 0"),
        ("no step 0", "step 0 is missing; steps are numbered from 0"),
        ("short step", "step 3, layer 1: 9 keys, not 10"),
        ("both", "whole sequences and steps"),
        ("nan", "these are no probabilities"),
        ("a third", r"layer 0, head 0, row 6: these are no probabilities, their sum is 0\.3 and not 1"),
        ("half a row", r"layer 0, head 2, row 6: .* sum is 0\.5 and not 1"),
        ("negative", r"layer 0, head 0, row 6: .* its least number is -0"),
        ("thin ahead", "looks at later ones"),
        ("one layer twice", "`meta`: layers names layer 1 twice"),
        ("layer -1", r"`meta`: .*layers\[0\]"),
        ("stacked and single", "one has to go"),
        ("zero in front", r"the array attentions\.01 has no number"),
        ("step with zeros", r"the array attentions\.00\.0 has no number"),
        ("23 digits", "0 to 999,999"),
        ("no year", r"`meta`: .*created"),
        ("few texts", "tokens has 1 texts; prompt and answer have 13 positions"),
        ("many texts", "tokens has 14 texts; prompt and answer have 13 positions"),
    ],
)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_odd_dumps_are_named(tmp_path: Path, name: str, said: str, suffix: str) -> None:
    arrays, meta = broken(name)
    path = write(tmp_path / f"odd{suffix}", arrays, meta)
    with Store(tmp_path / "t.db") as store:
        with pytest.raises(TraceError, match=said) as caught:
            import_traces(store, records_of(str(path), []))
        assert f"odd{suffix}" in caught.value.message
        assert caught.value.mend
        assert store.rows("SELECT count(*) AS n FROM traces") == [{"n": 0}]


def test_what_was_saved_in_another_way_is_told_how(tmp_path: Path) -> None:
    p = attention()
    np.savez(tmp_path / "object.npz", meta=np.array(META, dtype=object), attentions=p)
    with zipfile.ZipFile(tmp_path / "torch.npz", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}.")
    np.save(tmp_path / "array.npy", p)
    for name, said, mend in (
        ("object.npz", "`meta` is an object as a pickle", "meta=json.dumps(meta)"),
        ("torch.npz", "was written by torch.save", "np.savez"),
        ("array.npy", "is one array of numpy", "np.savez"),
    ):
        with pytest.raises(TraceError, match=f"{name}:? {said}") as caught:
            list(records_of(str(tmp_path / name), []))
        assert mend in str(caught.value.mend)


def test_layers_of_one_array_are_in_the_order_that_meta_says(tmp_path: Path) -> None:
    p = attention()
    plain = read_dump(write(tmp_path / "x.npz", by_layer(p)))
    stacked = write(tmp_path / "y.npz", {"attentions": p[[1, 2, 0]]}, {**META, "layers": [1, 2, 0]})
    assert read_dump(stacked)[1:] == plain[1:]
    assert read_dump(stacked, layers=[0])[1:] == read_dump(tmp_path / "x.npz", layers=[0])[1:]


def test_rows_of_zeros_are_heads_that_took_no_part(tmp_path: Path) -> None:
    """A query that was padding has no mass at all; a pruned head leaves the mean to the others."""
    p = attention(5)
    p[:, :, PROMPT + 1] = 0
    p[1, 3, PROMPT + 2] = 0
    path = write(tmp_path / "x.npz", by_layer(p))
    steps = Trace(read_dump(path)).steps
    assert [step["flags"] for step in steps] == [[], [], ["empty"], ["partial_heads"], [], []]
    assert (steps[2]["heads"], steps[2]["entropy_bits"], steps[2]["sink_mass"]) == ({"seen": 0, "total": 4}, 0, 0)
    assert (sum(steps[2]["fingerprint"]), links_of(steps[2])) == (0, [])
    own = Trace(read_dump(path, layers=[1])).steps[3]
    row = p[1, :3, PROMPT + 2, : PROMPT + 3]
    assert own["heads"] == {"seen": 3, "total": 4}
    assert own["sink_mass"] == pytest.approx(row.mean(axis=0)[:4].sum(), rel=1e-5)
    assert own["entropy_bits"] == pytest.approx(-(row * np.log2(row)).sum(axis=1).mean(), rel=1e-5)


def test_a_copy_of_a_dump_is_the_same_trace(tmp_path: Path) -> None:
    meta = {k: v for k, v in META.items() if k != "created"}
    path = write(tmp_path / "x.npz", by_layer(attention()), meta)
    copy = tmp_path / "copy.npz"
    copy.write_bytes(path.read_bytes())
    os.utime(path, (1, 1))
    with Store(tmp_path / "t.db") as store:

        def status(name: Path, **more: Any) -> str:
            return import_traces(store, records_of(str(name), []), **more)[0].status

        assert status(path) == "added"
        before = list(store.records(store.find("hf-")))
        os.utime(path, (2e9, 2e9))
        assert (status(path), status(copy), status(copy, duplicates="as-new")) == ("identical",) * 3
        assert list(store.records(store.find("hf-"))) == before
        assert status(copy, duplicates="replace") == "replaced"
        assert store.rows("SELECT count(*) AS n FROM traces") == [{"n": 1}]


@pytest.mark.parametrize("layers", [[0], []])
def test_layers_are_of_dumps_only(tmp_path: Path, layers: list[int]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"record_type":"header","version":"1.0","trace_id":"t","model":"m"}\n')
    for kind in ("auto", "geom", "glassbox"):
        with pytest.raises(UsageError, match="--layers chooses among the layers of a dump") as caught:
            list(records_of(str(path), [], kind=kind, layers=layers))  # type: ignore[arg-type]
        assert caught.value.mend
    dump = write(tmp_path / "x.npz", by_layer(attention()))
    with pytest.raises(TraceError, match=r"has no layer 7; it has 0,1,2") as missing:
        list(records_of(str(dump), [], layers=[7]))
    assert missing.value.mend == "--layers 0,1,2"


SHAPES = [([2**62, 8, 8], [0, 0]), ([2**32, 2**31, 2**31], [0, 0]), ([2**70, 8, 8], [0, 0]), ([-2, -8, 8], [0, 512]),
          ([2, 8, 8], [512, 0]), ([2, 8, 8], [-512, 0])]  # fmt: skip


@pytest.mark.parametrize(("shape", "offsets"), SHAPES)
def test_shapes_that_cannot_be(tmp_path: Path, shape: list[int], offsets: list[int]) -> None:
    tensor = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    header = json.dumps({"__metadata__": {"meta": json.dumps({"prompt_len": 4})}, "attentions.0": tensor}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(512))
    with pytest.raises(TraceError, match=r"x\.safetensors"):
        read_dump(path)


def test_an_archive_that_promises_more_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, meta=np.array(json.dumps({"prompt_len": 4})))
    with zipfile.ZipFile(path, "a") as archive, archive.open("attentions.npy", "w") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**10, 8, 8)}
        )
    with pytest.raises(TraceError, match="shorter than its shape"):
        read_dump(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("cut", [0, 3, 9, 60, 2000, -10])
def test_dumps_that_were_cut_off(tmp_path: Path, suffix: str, cut: int) -> None:
    path = write(tmp_path / f"x{suffix}", by_layer(attention()))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(TraceError, match=rf"x{suffix}"):
        list(records_of(str(path), []))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, meta=np.array({"a": print}, dtype=object))
    with pytest.raises(TraceError, match="`meta` is an object as a pickle; those are not read"):
        read_dump(path)


def test_one_array_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(array_files, "MOST_BYTES", 1000)
    with pytest.raises(TraceError, match="save one for each layer, or as safetensors"):
        read_dump(write(tmp_path / "x.npz", {"attentions": attention()}))


TINY_MODEL = """
import sys, torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
words = "[UNK] Why is the sky blue light red of a sea and".split()
tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(sys.argv[1])
torch.manual_seed(0)
sizes = dict(vocab_size=12, hidden_size=32, intermediate_size=32, num_hidden_layers=2)
heads = dict(num_attention_heads=4, num_key_value_heads=2, bos_token_id=None, eos_token_id=None)
LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(sys.argv[1])
"""


def test_the_script_of_the_docs(tmp_path: Path) -> None:
    """As a reader would: the script on a (tiny, random) model, and its file imported."""
    # transformers beside a CPU build of torch; a reader's own installation needs none of it.
    shim = Path(geomcli.__file__).parent / "server_patch" / "cpu_shim"
    environment = {**os.environ, "PYTHONPATH": str(shim)}

    def python(script: str, *arguments: str) -> None:
        command = [sys.executable, "-c", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
        assert done.returncode == 0, done.stderr

    model, out = str(tmp_path / "model"), tmp_path / "x.safetensors"
    python(TINY_MODEL, model)
    page = (Path(__file__).parents[2] / "docs/traces.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(# dump_attention.*?)```", page, re.DOTALL)
    python(script, model, "Why is the sky blue", str(out))
    trace = Trace(read_dump(out))
    assert (len(trace.tokens), len(trace.steps), trace.steps[0]["prompt_len"]) == (40, 40, 5)
    assert trace.messages[0]["content"] == "Why is the sky blue"
    assert trace.header["model"] == model
    assert list(trace.steps[0]["attention"]["layers"]) == ["0", "1"]
    assert all(token["text"] for token in trace.tokens)
