"""A GGUF file of a model with a SentencePiece vocabulary (Gemma) as a folder that transformers and the benchmarks read.

    pip install gguf transformers
    python benchmarks/gguf_folder.py FILE.gguf FOLDER

transformers 5.2 reads the weights of such a file but gives its tokenizer no merges, so every letter is a token. Here a
pair of tokens merges where both together are a token, that with the best score first, as SentencePiece's BPE does
(Kudo and Richardson, 2018, arXiv 1808.06226). A text begins with the file's first token (`bos`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

NORMAL, CONTROL, OF_THE_USER = 1, 3, 4


def tokenizer_of(path: Path) -> Any:
    reader = GGUFReader(path)

    def field(name: str) -> Any:
        return reader.fields[f"tokenizer.ggml.{name}"].contents()

    words, scores, kinds = field("tokens"), field("scores"), field("token_type")
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = []
    for word, score, kind in zip(words, scores, kinds, strict=True):
        if kind != NORMAL:
            continue
        parts = [(word[:at], word[at:]) for at in range(1, len(word))]
        merges += [(-score, pair) for pair in parts if pair[0] in vocabulary and pair[1] in vocabulary]
    merges.sort(key=lambda merge: merge[0])
    unknown = words[int(field("unknown_token_id"))]
    made = Tokenizer(
        BPE(vocabulary, [pair for _, pair in merges], byte_fallback=True, unk_token=unknown, fuse_unk=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    first = words[int(field("bos_token_id"))]
    for kind, special in ((CONTROL, True), (OF_THE_USER, False)):
        found = [word for word, its in zip(words, kinds, strict=True) if its == kind]
        made.add_tokens([AddedToken(word, special=special, normalized=False) for word in found])
    made.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, vocabulary[first])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token=first, unk_token=unknown, eos_token=words[int(field("eos_token_id"))]
    )


def main() -> None:
    path, folder = map(Path, sys.argv[1:])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer_of(path).save_pretrained(folder)


if __name__ == "__main__":
    main()
