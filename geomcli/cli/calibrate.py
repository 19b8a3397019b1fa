"""`geom calibrate`: a detector's weights and threshold from labelled answers or clean traffic of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geomcli.cli import output
from geomcli.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from geomcli.detector_calibration import Area, Part, Result
    from geomcli.labelled_answers import Answer

_RATE = 0.01
_USE = "geom calibrate --clean TRAFFIC.jsonl"


def calibrate(
    answers: Annotated[
        str | None, typer.Argument(metavar="ANSWERS", help="Traces of labelled answers as JSON lines; `-` for stdin.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSON lines of trace_id, wrong, group; else the headers' own `wrong`.", dir_okay=False
        ),
    ] = None,
    clean: Annotated[
        str | None, typer.Option(metavar="TRAFFIC", help="Traces in which nothing is wrong; they need no labels.")
    ] = None,
    detector: Annotated[str, typer.Option(help="compass, logprob, rauq, heads or received.")] = "logprob",
    false_alarms: Annotated[
        float | None, typer.Option(help=f"Clean answers that may be alarmed at, as a share ({_RATE}).")
    ] = None,
    per_thousand: Annotated[
        float | None, typer.Option("--false-alarms-per-1k", help="Instead: false alarms in 1,000 clean tokens.")
    ] = None,
    consecutive: Annotated[
        int, typer.Option(help="Tokens in a row at or above the threshold that make an alarm.", min=1, max=1000)
    ] = 1,
    setting: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of the detector; repeatable.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Whose answers, where the file has several models'.")] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write or replace; the user's data folder if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The result as JSON.")] = False,
) -> None:
    """Give a detector its threshold, and its weights where it has any, and say how well it does on held-out answers.

    \b
    Examples:
      geom calibrate --clean traffic.jsonl
      geom calibrate answers.jsonl --labels labels.csv --detector heads --false-alarms 0.05
      geom calibrate answers.jsonl --labels labels.csv --clean traffic.jsonl --detector heads --out heads.npz
    """
    from geomcli.detector_calibration import Plan
    from geomcli.detector_calibration import calibrate as run
    from geomcli.detectors.calibration import ANSWER, THOUSAND, default_path, save
    from geomcli.labelled_answers import read_labels

    if false_alarms is not None and per_thousand is not None:
        raise UsageError("--false-alarms and --false-alarms-per-1k contradict each other.", "one of them")
    if false_alarms is not None and not 0 < false_alarms < 1:
        raise UsageError(f"--false-alarms must be above 0 and below 1, got {false_alarms:g}.")
    if per_thousand is not None and not 0 < per_thousand <= 1000:
        raise UsageError(f"--false-alarms-per-1k must be above 0 and at most 1000, got {per_thousand:g}.")
    if answers is None and clean is None:
        raise UsageError("there is nothing to calibrate on.", _USE)
    if answers is None and labels is not None:
        raise UsageError(
            "--labels says which of ANSWERS are wrong, and there are none.", "geom calibrate ANSWERS --labels …"
        )
    if answers == clean == "-":
        raise UsageError("only one of the two can be stdin.", "geom calibrate answers.jsonl --clean -")
    known = None if labels is None else read_labels(labels)
    found = [] if answers is None else _read(answers, known, model)
    labelled = [answer for answer in found if answer.wrong is not None]
    if found and not labelled:
        raise UsageError(
            f"none of the {len(found)} answers has a label." if known is None else
            f"no label of {labels} is for one of the {len(found)} answers.",
            "--labels FILE; or --clean, where nothing is wrong",
        )  # fmt: skip
    traffic = [] if clean is None else _read(clean, None, model)
    if any(answer.wrong for answer in traffic):
        traffic = [answer for answer in traffic if not answer.wrong]
        output.narrator().print("Answers of the clean traffic that say they are wrong are left out.")
    narrator = output.narrator()
    if len(labelled) < len(found):
        narrator.print(f"{len(found) - len(labelled)} of {len(found)} answers have no label and are left out.")
    rate, per = (per_thousand, THOUSAND) if per_thousand is not None else (false_alarms or _RATE, ANSWER)
    plan = Plan(detector, rate, per, consecutive, _settings(setting), seed)
    calibration, result = run(plan, labelled, traffic, _sources(answers, labelled, clean, traffic))
    for note in result.notes:
        narrator.print(output.marked(note), style="yellow")
    path = out or default_path(result.about.model, detector)
    save(calibration, path)
    if as_json:
        import msgspec

        output.print_json({**msgspec.to_builtins(result), "file": str(path)})
        return
    _print(result)
    narrator.print(output.marked(f"calibration: {path}"))


def _read(name: str, labels: object, model: str | None) -> list[Answer]:
    from geomcli.labelled_answers import read

    answers, problems = read(name, labels)  # type: ignore[arg-type]
    for problem in problems:
        output.narrator().print(output.marked(f"Left out: {problem}"))
    return [answer for answer in answers if model is None or answer.model == model]


def _settings(given: list[str] | None) -> dict[str, float]:
    made: dict[str, float] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        try:
            made[name.strip()] = float(value)
        except ValueError:
            equals = ""
        if not equals:
            raise UsageError(f"--set {text!r}: a name and a number are wanted.", "--set window=20")
    return made


def _sources(answers: str | None, labelled: Sequence[Answer], clean: str | None, traffic: Sequence[Answer]) -> str:
    said = []
    if answers is not None:
        wrong = sum(bool(answer.wrong) for answer in labelled)
        said.append(f"{len(labelled)} labelled answers of {answers}, {wrong} of them wrong")
    if clean is not None:
        said.append(f"{len(traffic)} clean answers of {clean}")
    return "; ".join(said)


_PARTS = {
    "train": "weights", "calibrate": "Platt's calibration", "conformal": "threshold (the right ones)",
    "held_out": "what is said below",
}  # fmt: skip


def _print(result: Result) -> None:
    about = result.about
    console = output.speaker()
    console.print(output.marked(f"{about.detector} of {about.model}, on {about.trained_on}"), style="bold")
    if any(part.answers for part in result.parts.values()):
        console.print("Split by group:")
    for name, part in result.parts.items():
        if part.answers:
            console.print(f"  {name:<10} {_counted(part)}, for {_PARTS[name]}", markup=False)
    unit = "answers" if about.per == "answer" else "in 1,000 tokens"
    rate = f"{about.false_alarms:.3g}" + (" of " if about.per == "answer" else " ") + unit
    row = "" if about.consecutive == 1 else f" in {about.consecutive} tokens in a row"
    console.print(
        f"Threshold {about.threshold:.4g}{row}: false alarms in at most {rate} like the {about.n} clean ones.",
        markup=False,
    )
    held = result.held_out
    if held is None:
        console.print("No labelled answers: whether it finds wrong ones is not known.", style="yellow")
        return
    console.print(
        f"Held out: alarms in {held.false_alarms} of {held.right} right answers, "
        f"{held.caught} of {held.wrong} wrong ones.",
        markup=False,
    )
    for area in held.areas:
        console.print(f"  AUROC {area.name:<24} {_area(area, held.right + held.wrong)}", markup=False)


def _counted(part: Part) -> str:
    return f"{part.answers:>5} answers of {part.groups} groups, {part.wrong} wrong"


def _area(area: Area, n: int) -> str:
    said = f"{area.auroc:.3f} {_interval(area.interval)}"
    if area.gain is None:
        return f"{said}, n = {n}"
    return f"{said}; the detector has {area.gain:+.3f} {_interval(area.gain_interval)}"


def _interval(of: tuple[float, float] | None) -> str:
    return "[-]" if of is None else f"[{of[0]:.3f}, {of[1]:.3f}]"
