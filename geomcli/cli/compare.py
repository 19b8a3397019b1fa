"""`geom compare`: two traces, how alike their attention is, and what differs."""

from __future__ import annotations

import contextlib
import gc
import json
import os
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomcli import display
from geomcli.cli import opening, output
from geomcli.errors import ExitCode, TraceError, UsageError
from geomcli.links import without_links

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

    from geomcli.comparison import AlignedToken, Comparison
    from geomcli.comparison_side import SideView
    from geomcli.differences import Metric, ZoneShare
    from geomcli.schema import Record
    from geomcli.store_queries import FittedAxes

_BEFORE, _BEHIND = 3, 5  # rows of the alignment shown around the first difference
_LARGE = 8 << 20  # bytes from which a second process reads the second file
_CELL = 35  # columns of one side of such a row
_HELP = "A file of JSON lines, `-` for stdin, or a stored trace: id, start of one, `last`."


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_HELP)],
    b: Annotated[str, typer.Argument(metavar="B", help="The same for the other side.")],
    as_json: Annotated[bool, typer.Option("--json", help="The whole comparison as JSON.")] = False,
    fail_under: Annotated[
        float | None, typer.Option(help="Exit with 4 when the similarity is below this, 0..1.", min=0, max=1)
    ] = None,
    number_a: Annotated[
        int | None, typer.Option("--number-a", help="Which trace of a file A with several, from 1.", min=1)
    ] = None,
    number_b: Annotated[int | None, typer.Option("--number-b", help="The same for B.", min=1)] = None,
    db: opening.Db = None,
) -> None:
    """Compare two traces: similarity, first difference, zones, bands and what differs in words.

    \b
    Examples:
      geom compare a.jsonl b.jsonl
      geom compare 20261123-19 last --json
      geom compare talk.jsonl talk.jsonl --number-a 1 --number-b 2
      geom run 'Why is the sky blue?' --no-save --jsonl | geom compare last - --fail-under 0.9
    """
    from geomcli import comparison

    if a == b == "-":
        raise UsageError("only one of the two can be stdin.", "geom compare a.jsonl -")
    gc.disable()  # millions of small objects that all live to the end: looking for dead ones takes a third of the time
    with _second_process(a, b) as beside:
        (left, fault_a), (right, fault_b) = _both(("A", a, number_a, db), ("B", b, number_b, db), beside)
        if fail_under is not None and (fault := fault_a or fault_b):
            raise TraceError(f"{fault}; there is no verdict for --fail-under.", "whole files, or without --fail-under")
        axes = _axes(list(dict.fromkeys(view.model for view in (left, right))), db)
        result = comparison.compare_sides(
            left,
            right,
            projection=None if axes is None else axes.projection,
            fitted_on=() if axes is None else axes.models,
            beside=beside,
        )
    below = fail_under is not None and result.similarity.overall < fail_under
    with output.unread():
        if as_json:
            import msgspec

            output.print_json(msgspec.to_builtins(result))
        else:
            _print(result, left, right)
    if fail_under is not None and below:
        said = (
            f"The similarity {_apart(result.similarity.overall, fail_under)} is below --fail-under {fail_under:.15g}."
        )
        with output.unread():
            output.narrator().print(said, markup=False)
        raise typer.Exit(int(ExitCode.VERDICT))


_Named = tuple[str, str, int | None, Path | None]


@contextlib.contextmanager
def _second_process(*names: str) -> Iterator[Executor | None]:
    """Where files are large, and there is a core for it."""
    large = all(map(opening.names_file, names)) and _bytes(*names) > _LARGE
    if not large or (os.cpu_count() or 1) < 2:
        yield None
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # A fork has everything imported; nothing else is running yet.
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        yield pool


def _both(one: _Named, other: _Named, beside: Executor | None) -> list[tuple[SideView, str]]:
    """Both sides, each with what of its input could not be read; the second beside the first where it can."""
    if beside is None:
        return [_read(*one), _read(*other)]
    reading = beside.submit(_read, *other)
    return [_read(*one), reading.result()]


def _bytes(*names: str) -> int:
    return sum(Path(name).stat().st_size for name in names if Path(name).is_file())


def _read(letter: str, name: str, number: int | None, db: Path | None) -> tuple[SideView, str]:
    from geomcli import sound_files
    from geomcli.comparison_side import SideView

    if opening.names_file(name) and number in (None, 1) and (sound := sound_files.read(Path(name))) is not None:
        return SideView(sound.trace, letter, sound.tokens, sound.steps), ""
    option = f"--number-{letter.lower()}"
    opened = opening.open_trace(name, db, number, option=option, keep=_slim)
    return SideView(opened.trace, letter), opened.fault


def _apart(value: float, bound: float) -> str:
    """A value below a bound with as many decimals, at least three, as it takes to see that."""
    return next((text for n in range(3, 17) if float(text := f"{value:.{n}f}") < bound), repr(value))


def _slim(record: Record) -> Record:
    """A step as far as a comparison wants it: numbers side by side, of its links the layers only."""
    if record.get("fingerprint") is not None:
        record["fingerprint"] = array("d", record["fingerprint"])
    if record.get("attention"):
        record["attention"] = without_links(record["attention"])
    return record


def _axes(models: list[str], db: Path | None) -> FittedAxes | None:
    """Axes of the stored traces of these models, where there are enough."""
    from geomcli import config
    from geomcli.errors import StoreError
    from geomcli.store import Store
    from geomcli.store_queries import fitted_axes

    path = config.store_path(db=None if db is None else str(db))
    if not path.is_file():
        return None  # two files are compared without making a store
    try:
        with Store(path, create=False) as store:
            return fitted_axes(store, models)
    except StoreError as error:
        output.narrator().print(output.marked(f"No fitted axes: {error.message}"))
        return None


def _print(c: Comparison, a: SideView, b: SideView) -> None:
    console = output.speaker()
    for name, side in (("A", c.a), ("B", c.b)):
        console.print(
            f"[bold]{name}[/]  {output.marked(side.trace_id or '-')}  {output.marked(side.model)}  "
            f"{side.tokens} tokens, {side.steps} with a fingerprint  [dim]{output.marked(side.title)}[/]"
        )
    for note in c.notes:
        console.print(f"   [dim]{output.marked(note)}[/]")
    _similarity(console, c)
    _section(console, f"Differences (B against A; {_tested(c)})")
    for sentence in c.differences or ("None.",):
        console.print(f"  {output.marked(sentence)}")
    if c.divergence is not None:
        _section(console, "Where the texts part")
        _rows(console, c, a, b)
    _section(console, "Zones")
    for zone in c.zones:
        glyph, style = output.ZONE_STYLES.get(zone.zone, ("·", "default"))
        console.print(
            f"  [{style}]{glyph} {output.marked(f'{zone.zone:<17}')}[/] A {zone.a:4.0%} {display.bar(zone.a)}  "
            f"B {zone.b:4.0%} {display.bar(zone.b)}  {zone.delta * 100:+.0f} points{_verdict(zone)}"
        )
    _section(console, "Metrics")
    for metric in c.metrics:
        if metric.a is not None or metric.b is not None:
            console.print(f"  {_metric(metric)}")
    _histogram(console, c)
    _section(console, f"Shift of the fingerprint ({_axes_of(c)})")
    for reading in c.interpretation.axes:
        share = "" if reading.explained is None else f"{reading.explained:4.0%} of variance  "
        console.print(f"  {reading.name:<24} {share}{reading.value:+.3f}  {reading.sentence}", markup=False)


def _axes_of(c: Comparison) -> str:
    i = c.interpretation
    if i.kind == "heuristic":
        return "heuristic axes, not fitted; what was tested is above"
    return f"principal components of {i.n} stored traces of {', '.join(map(output.marked, i.models))}"


def _section(console: Console, title: str) -> None:
    console.print(f"\n[bold]{title}[/]")


def _tested(c: Comparison) -> str:
    """How the differences were tested, in the words of the title."""
    s = c.significance
    if not s.tested:
        return "too few steps to test them against noise"
    lengths = f"blocks of {s.block_a} and {s.block_b} steps"
    return f"{s.clear} of {s.tested} tested are larger than the noise of the steps; bootstrap, {lengths}"


def _verdict(difference: Metric | ZoneShare) -> str:
    if difference.interval is None:
        return ""
    low, high = difference.interval
    within = f"[{low:+.3f}, {high:+.3f}]"
    return f"  {within} noise" if difference.verdict == "noise" else f"  {within}"


def _similarity(console: Console, c: Comparison) -> None:
    s = c.similarity
    _section(console, f"Similarity {s.overall:.3f}")
    of_pairs = f"aligned tokens in the same zone, of {c.zone_pairs}"
    for name, value, meaning in (
        ("direction", s.direction, "cosine of the mean fingerprints"),
        ("zones", s.zones, of_pairs if s.zones is not None else "no aligned tokens both have a zone"),
        ("entropy", s.entropy, "1 - difference of the mean bin entropies"),
    ):
        shown = "    -" if value is None else f"{value:.3f}"
        console.print(f"  {name:<10} {shown} {display.bar(value or 0.0)}  [dim]{meaning}[/]")
    console.print(
        f"  {'tokens':<10} {c.same_tokens:.3f} {display.bar(c.same_tokens)}  [dim]the same text; no part of it[/]"
    )


def _rows(console: Console, c: Comparison, a: SideView, b: SideView) -> None:
    from rich.cells import cell_len

    assert c.divergence is not None
    texts_a, texts_b = a.text_of(), b.text_of()
    first = max(0, c.divergence.row - _BEFORE)
    for row in c.alignment[first : c.divergence.row + _BEHIND]:
        mark = " " if row.kind == "same" else "≠"
        cells = [_cell(row.a, texts_a.get(row.a), row.zone_a), _cell(row.b, texts_b.get(row.b), row.zone_b)]
        gap = " " * max(1, _CELL - cell_len(cells[0]))
        console.print(f"  {mark} {cells[0]}{gap}{cells[1]}{_zones_mark(row)}", markup=False)


def _cell(index: int | None, text: str | None, zone: str | None) -> str:
    if index is None:
        return "-"
    glyph, _ = output.ZONE_STYLES.get(zone or "", (" ", ""))
    quoted = display.printable(json.dumps(text, ensure_ascii=False)) if text is not None else "?"
    return f"{index:>5} {glyph} {quoted}"


def _zones_mark(row: AlignedToken) -> str:
    return display.printable(f"   {row.zone_a} / {row.zone_b}") if row.zones_differ else ""


def _metric(m: Metric) -> str:
    top = max(abs(m.a or 0.0), abs(m.b or 0.0))
    a, b = (f"{_number(v, m.unit):>8} {display.bar(v or 0.0, top=top)}" for v in (m.a, m.b))
    delta = "" if m.delta is None else f"{'+' if m.delta >= 0 else '-'}{_number(abs(m.delta), m.unit)}"
    relative = "" if m.relative is None else f"({m.relative:+.0%})"
    return f"{m.label:<23} A {a} B {b} {delta:>8} {relative:<7}{_verdict(m)}".rstrip()


def _number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if unit == "tokens" else f"{value:.2f}" if unit in ("bits", "tokens/s") else f"{value:.3f}"


def _histogram(console: Console, c: Comparison) -> None:
    _section(console, f"Attention by distance ({c.histogram.angle:.3f} rad apart)")
    top = max(*c.histogram.a, *c.histogram.b)
    for name, values in (("A", c.histogram.a), ("B", c.histogram.b)):
        console.print(f"  {name} {display.sparkline(list(values), top=top or 1.0)}")
    signs = "".join("+" if d >= 0.01 else "-" if d <= -0.01 else "·" for d in c.histogram.delta)
    console.print(f"  Δ {signs}  [dim]bins of 0-1, 2-3, 4-7, … 32768 and more tokens back[/]")
