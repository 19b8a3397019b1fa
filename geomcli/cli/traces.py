"""`geom traces`: ls, show, search, rm; export and import are in `trace_files`."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from geomcli.cli import output, trace_files
from geomcli.cli.summary import print_summary
from geomcli.cli.trace_names import Db, given, store_at
from geomcli.display import printable
from geomcli.errors import UsageError
from geomcli.kept import Kept, cache_of
from geomcli.links import prompt_length, strongest_links, texts_by_position
from geomcli.measured import number
from geomcli.moments import milliseconds
from geomcli.schema import Record
from geomcli.store_listing import MATCH_BEGIN, MATCH_END, Filter, list_traces, search_traces
from geomcli.trace import Trace
from geomcli.zones import UNKNOWN, ZONE_NAMES

app = typer.Typer(name="traces", help="The answers that were kept.", no_args_is_help=True)
app.command("export")(trace_files.export)
app.command("import")(trace_files.import_)

_Id = Annotated[str, typer.Argument(help="Trace id, the start of one, or `last`.")]
_Limit = Annotated[
    int | None, typer.Option(help="Most traces to name; 20, with -q and --json all.", min=1, max=1_000_000)
]
_ON_A_SCREEN = 20
_Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Ids only, for a pipe.")]
_Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
_Zone = Annotated[str | None, typer.Option(help="Only traces that are mostly in this zone.")]
_Since = Annotated[str | None, typer.Option(help="Only newer ones: 7d, 12h, 2026-11-20, 2026-11-20T18:30.")]
_Until = Annotated[str | None, typer.Option(help="Only older ones; a day counts to its end.")]
_Model = Annotated[str | None, typer.Option("-m", "--model", help="Only traces of this model.")]


@app.command()
def ls(
    limit: _Limit = None,
    zone: _Zone = None,
    since: _Since = None,
    until: _Until = None,
    model: _Model = None,
    quiet: _Quiet = False,
    as_json: _Json = False,
    db: Db = None,
) -> None:
    """List the newest traces.

    \b
    Examples:
      geom traces ls --zone long_range --since 7d
      geom traces ls -q --model smollm2 | geom traces export - -o smollm2.jsonl.zst
    """
    only = _filter(zone, since, until, model)
    with store_at(db) as store:
        most = _most(limit, every=quiet or as_json)
        rows = list_traces(store, only, limit=most + 1 if most >= 0 else most)
    _listed(rows, most, quiet=quiet, as_json=as_json)
    if not rows and not as_json:
        nothing = f"No traces yet in {store.path}. Try: geom run 'Why is the sky blue?'"
        output.narrator().print(nothing if only == Filter() else "No such traces.", markup=False)


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(help="Words that all stand in one message; 'begin*', '\"a phrase\"'.")],
    limit: _Limit = None,
    zone: _Zone = None,
    since: _Since = None,
    until: _Until = None,
    model: _Model = None,
    quiet: _Quiet = False,
    as_json: _Json = False,
    db: Db = None,
) -> None:
    """Find traces by what was asked, thought or answered; best match first.

    \b
    Examples:
      geom traces search photon
      geom traces search '"blue light" scatter*' --since 2026-11-01
      geom traces search -q photon | geom traces export - -o photons.jsonl
    """
    only = _filter(zone, since, until, model)
    with store_at(db) as store:
        most = _most(limit, every=quiet or as_json)
        rows = search_traces(store, " ".join(words), only, limit=most + 1 if most >= 0 else most)
    _listed(rows, most, quiet=quiet, as_json=as_json)
    if not rows and not as_json:
        output.narrator().print("Nothing found.")


@app.command()
def rm(
    traces: Annotated[list[str], typer.Argument(help="Trace ids, starts of ids, `last`; `-` reads ids from stdin.")],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask; needed without a terminal.")] = False,
    db: Db = None,
) -> None:
    """Remove traces for good.

    \b
    Examples:
      geom traces rm 20261123-19
      geom traces ls -q --until 90d | geom traces rm --yes -
    """
    narrator = output.narrator()
    with store_at(db) as store:
        ids = given(store, traces)
        if not ids:
            narrator.print("Nothing to remove.")
            return
        what = f"{len(ids)} trace{'s' if len(ids) != 1 else ''}"
        if not yes:
            if not (sys.stdin.isatty() and sys.stderr.isatty()):
                raise UsageError(
                    f"removing {what} has to be confirmed, and there is no terminal.", "geom traces rm --yes …"
                )
            for trace_id in ids[:20]:
                narrator.print(f"  {output.marked(trace_id)}")
            if len(ids) > 20:
                narrator.print(f"  and {len(ids) - 20} more")
            typer.confirm(f"Remove {what} for good?", abort=True, err=True)
        removed = store.remove(ids)
    narrator.print(f"Removed {removed} trace{'s' if removed != 1 else ''}.")


def _filter(zone: str | None, since: str | None, until: str | None, model: str | None) -> Filter:
    if zone is not None and zone not in ZONE_NAMES:
        raise UsageError(f"there is no zone {zone!r}.", f"--zone with one of {', '.join(ZONE_NAMES)}")
    now = datetime.now().astimezone()
    return Filter(
        zone=zone,
        since=None if since is None else milliseconds(since, now=now),
        until=None if until is None else milliseconds(until, now=now, end=True),
        model=model,
    )


def _most(limit: int | None, *, every: bool) -> int:
    """How many to name, -1 for all: a pipe must not lose traces because a screen is small."""
    return limit if limit is not None else -1 if every else _ON_A_SCREEN


def _listed(rows: list[dict[str, Any]], most: int, *, quiet: bool, as_json: bool) -> None:
    more, rows = 0 <= most < len(rows), rows[:most] if most >= 0 else rows
    if as_json:
        marks = str.maketrans("", "", MATCH_BEGIN + MATCH_END)
        for row in rows:
            row["complete"] = bool(row["complete"])
            if "snippet" in row:
                row["snippet"] = row["snippet"].translate(marks)
        output.print_json(rows)
        return
    console = output.speaker()
    for row in rows:
        if quiet:
            print(printable(row["id"]).replace("\n", "␊").replace("\t", "␉"))  # a line for each trace
            continue
        created = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["created"] / 1000))
        tokens = "cut off" if not row["complete"] else f"{row['tokens']} tokens"
        cells = (row["id"], created, row["model"], tokens, row["dominant_zone"] or "-", row["title"])
        print("\t".join(printable(" ".join(cell.split())) for cell in cells))
        if "snippet" in row:
            console.print(f"  [dim]{output.marked(row['role'])}[/] {_snippet(row['snippet'])}")
    if more:
        output.narrator().print(f"There are more than {most}: --limit N, or -q for all.", markup=False)


def _snippet(text: str) -> str:
    """A snippet on one line, matches bold; escaped piece by piece, for only our marks may act."""
    made = []
    for place, piece in enumerate(" ".join(text.split()).split(MATCH_BEGIN)):
        match, end, rest = piece.partition(MATCH_END)
        bold = place > 0 and end
        made.append(f"[bold]{output.marked(match)}[/]{output.marked(rest)}" if bold else output.marked(match + rest))
    return "".join(made)


@app.command()
def show(
    trace: _Id = "last",
    as_json: Annotated[bool, typer.Option("--json", help="All records as one JSON list.")] = False,
    links: Annotated[int, typer.Option(help="Attended positions shown for each token.", min=0)] = 3,
    db: Db = None,
) -> None:
    """Show a trace token by token: zone, drift, and what each token looked at most.

    Where tokens left the KV cache, `left` is the first token that was written without this one. With --json tokens have
    it too, as `leftAt`, beside `kept` at the end of the answer (null where it is not known).
    """
    with store_at(db) as store:
        records = list(store.records(store.find(trace)))
    if as_json:
        cache = _Cache.of(Trace(records))
        output.print_json(records if cache is None else list(map(cache.flagged, records)))
        return
    _print_tokens(Trace(records), links, store.path)


class _Cache:
    """Which tokens of an answer, that begins at `start`, the KV cache had at its end."""

    def __init__(self, trace: Trace, start: int) -> None:
        self.start, self.kept = start, Kept(trace.steps)

    @classmethod
    def of(cls, trace: Trace) -> _Cache | None:
        """None where nothing leaves."""
        start = prompt_length(trace)
        return None if start is None or not any(map(cache_of, trace.steps)) else cls(trace, start)

    def left_at(self, token: Record) -> int | None:
        return self.kept.left_at(self.start + token["index"])

    def flagged(self, record: Record) -> Record:
        if record["record_type"] != "token":
            return record
        return {**record, "kept": self.kept.kept(self.start + record["index"]), "leftAt": self.left_at(record)}

    def said(self) -> str:
        prompt = self.kept.counted(0, self.start)
        if prompt is None:
            return "which tokens left the KV cache is not known"
        return f"left: the first token written without it; of the prompt {prompt} of {self.start} tokens left"


def _print_tokens(trace: Trace, n_links: int, manifold: Path) -> None:
    from rich.table import Table

    console = output.speaker()
    for message in trace.messages:
        console.print(f"[bold]{output.marked(message['role'])}[/] {output.marked(message['content'])}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, justify in (("#", "right"), ("token", "left"), ("zone", "left"), ("conf", "right"), ("drift", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    cache = _Cache.of(trace) if any(map(_freed, trace.steps)) else None
    if cache is not None:
        table.add_column("left", justify="right")
    table.add_column("looks at (position, token, probability)")
    steps = {step["tokenIndex"]: step for step in trace.steps}
    texts = texts_by_position(trace)
    for token in trace.tokens:
        cells = _row(token, steps.get(token["index"]), texts, n_links)
        if cache is not None:
            left = cache.left_at(token)
            cells.insert(-1, "" if left is None else str(left))
            cells[1] = cells[1] if left is None else f"[strike]{cells[1]}[/]"
        table.add_row(*cells)
    console.print()
    console.print(table)
    if cache is not None:
        console.print(f"[dim]{cache.said()}[/]")
    if trace.metrics:
        print_summary(trace, manifold=manifold)
    else:
        output.narrator().print("\nThis trace was cut off before its end.")


def _freed(step: Record) -> int:
    cache = cache_of(step)
    return 0 if cache is None else cache.freed


def _row(token: Record, step: Record | None, texts: dict[int, str], n_links: int) -> list[str]:
    shown = _quoted(token.get("text") or "")
    if step is None:
        return [str(token["index"]), shown, "", "", "", ""]
    zone = step.get("zone") or "-"
    glyph, style = output.ZONE_STYLES.get(zone, output.ZONE_STYLES[UNKNOWN])
    confidence, drift = number(step.get("zone_confidence")), number(step.get("drift"))
    return [
        str(token["index"]),
        f"[{style}]{shown}[/]",
        f"[{style}]{glyph} {output.marked(zone)}[/]",
        "" if confidence is None else f"{confidence:.2f}",
        "" if drift is None else f"{drift:.3f}",
        _links(step, texts, n_links),
    ]


def _quoted(text: str) -> str:
    """Escaped for one line and for markup; the quotes show leading spaces."""
    return output.marked(json.dumps(text, ensure_ascii=False))


def _links(step: Record, texts: dict[int, str], n_links: int) -> str:
    parts = [output.marked(flag) for flag in step.get("flags", [])]
    for position, probability in strongest_links(step)[:n_links]:
        name = f" [dim]{_quoted(texts[position])}[/]" if position in texts else ""
        parts.append(f"{position}{name} {probability:.2f}")
    return "  ".join(parts)
