"""`geom eval`: how well detectors of wrong answers do on a served model."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomcli.cli import output
from geomcli.errors import ExitCode, GeomError, UsageError

if TYPE_CHECKING:
    from geomcli.evaluation.collecting import Plan, Progress

_EVERY_SECONDS = 10.0  # a line of progress where stderr is no terminal

app = typer.Typer(help="Evaluate detectors on a served model.", no_args_is_help=True, rich_markup_mode=None)
detect = typer.Typer(help="Detectors of wrong answers.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(detect, name="detect")


@detect.command()
def collect(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder; one that was begun is gone on with.")],
    questions: Annotated[
        Path | None,
        typer.Option(help="JSON lines of {question, answer: [aliases]}.", exists=True, dir_okay=False),
    ] = None,
    cards: Annotated[int, typer.Option(help="Made texts with a question.", min=0, max=100_000)] = 1000,
    closed: Annotated[int, typer.Option(help="Closed-book questions made from tables.", min=0)] = 1000,
    seed: Annotated[int, typer.Option(help="Of what is drawn, and of the report's test part.", min=0)] = 0,
    temperature: Annotated[
        list[float] | None, typer.Option(help="Each question is asked at each; repeatable. 0 and 1 if left out.", min=0)
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1, max=4096)] = 32,
    layers: Annotated[str | None, typer.Option(help="Layer ids, like 7,15: some of those the server captures.")] = None,
    concurrency: Annotated[int, typer.Option(help="Answers at a time.", min=1, max=1024)] = 8,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Served model; the first one if left out.")] = None,
    url: Annotated[str | None, typer.Option("--url", "--base-url", help="Server; GEOM_BASE_URL.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Key of the server; GEOM_API_KEY.")] = None,
    attention_key: Annotated[
        str | None, typer.Option(help="Key of its --attention-api-key; GEOM_ATTENTION_KEY.")
    ] = None,
) -> None:
    """Ask a served model questions whose answers are known, and keep its answers with what was captured of each token.

    \b
    Examples:
      geom eval detect collect --out answers
      geom eval detect collect --out answers --questions trivia.jsonl --cards 500 --closed 500 --temperature 0
    """
    from geomcli import config
    from geomcli.cli.run import _layer_ids
    from geomcli.evaluation import cards as card_items
    from geomcli.evaluation import facts
    from geomcli.evaluation.items import read_questions, refuse_repeated

    settings = config.load(base_url=url, api_key=api_key, attention_key=attention_key)
    temperatures = list(dict.fromkeys(temperature if temperature is not None else [0.0, 1.0]))
    available = len(facts.pool())
    if closed > available:
        raise UsageError(f"--closed {closed}: there are {available} closed-book questions.", f"--closed {available}")
    items = [*card_items.draw(cards, seed), *facts.draw(closed, seed)]
    items += read_questions(questions) if questions else []
    if not items:
        raise UsageError("there is nothing to ask.", "--cards 1000, --closed 1000 or --questions FILE")
    refuse_repeated(items, "the questions")
    random.Random(seed).shuffle(items)  # what is there when a run is broken off is of every kind
    chosen = _layer_ids(layers)

    async def job() -> Progress:
        from geomcli.client import Client
        from geomcli.evaluation import collecting
        from geomcli.evaluation.folder import Folder

        async with Client(settings.base_url, api_key=settings.api_key, attention_key=settings.attention_key) as client:
            plan = collecting.plan(
                await client.capabilities(), model=model or await client.model(), items=items, layers=chosen,
                temperatures=temperatures, max_tokens=max_tokens, seed=seed,
            )  # fmt: skip
            folder = Folder.create(out, plan.header, items)
            _say_what_is_missing(plan)
            with _progress() as show:
                return await collecting.collect(
                    client, folder, items, plan.fields, concurrency=concurrency, progress=show
                )

    again = "the same command; it goes on where it was"
    try:
        done = asyncio.run(job())
    except (KeyboardInterrupt, asyncio.CancelledError):
        output.narrator().print(f"Interrupted; what was answered is kept. Try: {again}")
        raise typer.Exit(int(ExitCode.INTERRUPTED)) from None
    except UsageError:
        raise
    except GeomError as error:
        if out.exists() and error.mend in (None, "geom serve"):
            error.mend = f"{error.mend or ''}{', then ' if error.mend else ''}{again}"
        raise
    rate = done.tokens / done.seconds if done.seconds else 0.0
    output.narrator().print(
        f"{done.done} answers in {output.marked(out)}; {done.fresh} new in {done.seconds:.0f} s, {rate:.1f} tokens/s"
    )


def _say_what_is_missing(plan: Plan) -> None:
    header, console = plan.header, output.narrator()
    if header.logits == "top_logprobs":
        console.print("The server has no logit statistics: entropies are of the 20 largest log-probabilities.")
    if not header.head_stats:
        console.print("The server lets out no head statistics: detectors from heads will be missing.", style="yellow")


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """One line that is written over on a terminal; elsewhere one every ten seconds."""
    console = output.narrator()
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(console.status("")) if console.is_terminal else None
        last = time.monotonic()

        def show(progress: Progress) -> None:
            nonlocal last
            if status is not None:
                status.update(_line(progress))
            elif time.monotonic() - last >= _EVERY_SECONDS:
                last = time.monotonic()
                console.print(_line(progress))

        yield show


def _line(progress: Progress) -> str:
    line = f"{progress.done} of {progress.total} answers"
    if progress.seconds and progress.fresh:
        rates = f"{progress.fresh / progress.seconds:.2f} answers/s, {progress.tokens / progress.seconds:.1f} tokens/s"
        left = int(progress.remaining_seconds or 0)
        line += f" · {rates} · {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    return line


@detect.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What `collect` wrote.")],
    json_file: Annotated[Path | None, typer.Option("--json", help="File for all numbers.", dir_okay=False)] = None,
    markdown_file: Annotated[
        Path | None, typer.Option("--markdown", help="File for tables; between the marks of one that has them.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Of folds and of the bootstrap; the test part is by collect's --seed.", min=0)
    ] = 0,
    final: Annotated[
        bool, typer.Option("--final", help="Look at the test part, once: a lock keeps the configuration.")
    ] = False,
) -> None:
    """Say what each signal is worth as a detector of wrong answers, on questions that it was not fitted on.

    Without --json or --markdown the tables go to stdout. A gain with a star has an interval without 0.

    \b
    Examples:
      geom eval detect report answers
      geom eval detect report answers --json report.json --markdown docs/evaluation.md
    """
    from geomcli.evaluation import markdown
    from geomcli.evaluation.folder import Folder

    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise GeomError("geom eval detect report needs scikit-learn.", "pip install 'geomcli[discover]'") from None
    from geomcli.evaluation import reporting

    page = markdown_file.read_text(encoding="utf-8") if markdown_file and markdown_file.exists() else ""
    markdown.placed(page, "")  # a page that cannot take the tables is refused before the work
    with _stages() as tick:
        document = reporting.report(Folder.open(folder), seed=seed, final=final, tick=tick)
    tables = markdown.render(document)
    if json_file:
        json_file.write_text(output.json_text(document), encoding="utf-8")
    if markdown_file:
        markdown_file.write_text(markdown.placed(page, tables), encoding="utf-8")
    if not json_file and not markdown_file:
        output.write_data(tables + "\n")
    output.narrator().print(f"Done in {document['seconds']:.0f} s.")


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    console = output.narrator()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield lambda stage: status.update(output.marked(stage))
