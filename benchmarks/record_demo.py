"""Records geomcli/demo.jsonl, what `geom tui --demo` plays: two turns of one chat on the default model's CPU engine.

python benchmarks/record_demo.py [-o FILE]     # minutes; nothing else may serve on port 30000
"""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

from geomcli import engine, engine_plan, jsonl, models
from geomcli.client import Client
from geomcli.schema import Message, Record
from geomcli.trace import Trace, TraceBuilder

QUESTIONS = ("Explain quantum entanglement in two sentences.", "Write a haiku about the moon.")
# Late layers, where the zones of this model change from word to word.
LAYERS = "10,18,26,29"
SAMPLING = {"temperature": 0.0, "max_tokens": 64}
FIELDS: dict[str, Any] = {
    "return_attention_tokens": True,
    "attention_fingerprint_mode": False,
    "attention_prompt_tokens": True,
    "attention_derotate": True,
    "top_k_attention": 7,
}


async def record(base_url: str) -> list[Record]:
    """The records of both answers, one trace behind the other; the second has the first one's messages."""
    messages: list[Message] = []
    records: list[Record] = []
    async with Client(base_url) as client:
        model = await client.model()
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            builder = TraceBuilder(messages, model=model, capture={**FIELDS, **SAMPLING})
            made = builder.start()
            async for chunk in client.chat(messages, model=model, fields={**FIELDS, **SAMPLING}):
                made += builder.add(chunk)
            made += builder.finish()
            records += made
            messages.append({"role": "assistant", "content": Trace(made).messages[-1]["content"]})
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent.parent / "geomcli" / "demo.jsonl")
    out = parser.parse_args().out
    flags = ["--return-attention-tokens", "--attention-capture-layers", LAYERS]
    plan = engine_plan.plan(models.resolve(models.DEFAULT_MODEL), flags=flags)
    with engine.Engine(plan) as running:
        running.wait()
        records = asyncio.run(record(plan.base_url))
    out.write_text(jsonl.dump(records), encoding="utf-8")
    print(f"{out}: {len(records)} records, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
