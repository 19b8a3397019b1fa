"""`geom spans`: what each sentence of an answer read of its prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from geomcli.cli import opening, output
from geomcli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomcli.sources import Source
    from geomcli.spans import SpanReading
    from geomcli.trace import Trace

_MOST_COLUMNS = 8

Division = Literal["documents", "paragraphs", "messages"]
By = Annotated[
    Division, typer.Option("--by", help="What messages are cut into: marked documents, paragraphs, or nothing.")
]
Given = Annotated[
    list[str] | None,
    typer.Option("--source", metavar="NAME=START:END", help="A source by token positions; repeatable."),
]


def spans(
    trace: opening.TraceName = "last",
    span: Annotated[
        list[str] | None, typer.Option("--span", metavar="A:B", help="Tokens A..B-1 instead of sentences; repeatable.")
    ] = None,
    by: By = "documents",
    source: Given = None,
    layer: Annotated[int | None, typer.Option(help="A captured layer; the last selected if left out.")] = None,
    with_sinks: Annotated[
        bool, typer.Option("--with-sinks", help="Count the first positions with the source that they are in.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Sources and spans as JSON.")] = False,
    number: opening.Number = None,
    db: opening.Db = None,
) -> None:
    """Which source did each sentence read? Attention mass from the answer to messages and documents.

    \b
    Examples:
      geom spans last
      geom spans rag.jsonl --by paragraphs --layer 18
      geom spans last --span 0:12 --source notes=40:180 --json
    """
    from geomcli import spans as library

    opened = opening.open_trace(trace, db, number).trace
    sources = sources_of(opened, by, source, sinks=0 if with_sinks else None)
    check_layer(opened, layer)
    chosen = [library.parse_span(text, len(opened.tokens)) for text in span] if span else library.sentence_spans(opened)
    readings = library.read_spans(opened, chosen, sources, layer=layer)
    if as_json:
        import msgspec

        output.print_json({"sources": msgspec.to_builtins(sources), "spans": msgspec.to_builtins(readings)})
    else:
        _print(sources, readings)


def sources_of(trace: Trace, by: Division, given: Sequence[str] | None, *, sinks: int | None = None) -> list[Source]:
    """The sources as the flags of a command choose them."""
    from geomcli import sources

    named = [sources.parse_given(text) for text in given or ()]
    return sources.sources_of(trace, division=by, given=named, sinks=sinks)


def check_layer(trace: Trace, layer: int | None) -> None:
    """UsageError when no step has that layer."""
    from geomcli.links import layers_of

    captured = sorted({known for step in trace.steps for known in layers_of(step)})
    if layer is not None and layer not in captured:
        raise UsageError(
            f"layer {layer} was not captured.", f"--layer N, one of {', '.join(map(str, captured)) or '-'}"
        )


def _print(sources: Sequence[Source], readings: Sequence[SpanReading]) -> None:
    from rich.table import Table

    if not any(reading.read for reading in readings):
        output.narrator().print("This trace has no links: nothing is known of what its sentences read.")
        output.narrator().print("Try: geom run --capture raw 'Why is the sky blue?'", markup=False)
        return
    means = [
        sum(r.masses[i].mass * r.read for r in readings if r.masses) / sum(r.read for r in readings)
        for i in range(len(sources))
    ]
    shown = sorted(sorted(range(len(sources)), key=lambda i: -means[i])[:_MOST_COLUMNS])
    others = [i for i in range(len(sources)) if i not in shown]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("tokens", justify="right", no_wrap=True)
    table.add_column("sentence", ratio=1)
    for i in shown:
        table.add_column(output.marked(sources[i].name), justify="right")
    if others:
        table.add_column(f"{len(others)} others", justify="right")
    table.add_column("unseen", justify="right")
    ratios = any(reading.lookback is not None for reading in readings)
    if ratios:
        table.add_column("lookback", justify="right")
    for reading in readings:
        cells = [_share(reading, i) for i in shown]
        if others:
            cells.append(f"{sum(reading.masses[i].mass for i in others):.2f}" if reading.read else "-")
        cells.append(f"{reading.unseen:.2f}" if reading.read else "-")
        if ratios:
            cells.append("-" if reading.lookback is None else f"{reading.lookback:.2f}")
        text = output.marked(" ".join(reading.text.split()))
        table.add_row(f"{reading.start}:{reading.end}", f"[dim]think[/] {text}" if reading.phase == "think" else text,
                      *cells)  # fmt: skip
    console = output.speaker()
    console.print(table)
    console.print(
        "Mass: mean attention of a sentence's tokens, as far as the captured links show it. "
        "A source may have up to the unseen mass more.",
        style="dim",
    )


def _share(reading: SpanReading, i: int) -> str:
    if not reading.read:
        return "-"
    top = max((m.mass for m in reading.masses if m.share is not None), default=0.0)
    mass = reading.masses[i]
    number = f"{mass.mass:.2f}"
    return f"[bold]{number}[/]" if mass.share is not None and mass.mass == top and top > 0 else number
