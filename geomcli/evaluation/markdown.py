"""The report as Markdown tables, and their place between two marks of a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from geomcli.errors import UsageError
from geomcli.evaluation.features import BASELINES

BEGIN, END = "<!-- geom eval detect report: begin -->", "<!-- geom eval detect report: end -->"


def placed(page: str, tables: str) -> str:
    """`page` with what is between the marks replaced; UsageError when it has one mark only."""
    begin, end = page.find(BEGIN), page.find(END)
    if begin < 0 and end < 0:
        return f"{page.rstrip()}\n\n{BEGIN}\n{tables}\n{END}\n".lstrip()
    if begin < 0 or end < begin:
        raise UsageError("the page has one of the two marks of the tables, or both in the wrong order.", BEGIN)
    return f"{page[: begin + len(BEGIN)]}\n{tables}\n{page[end:]}"


def render(document: dict[str, Any]) -> str:
    collection = document["collection"]
    temperatures = ", ".join(f"{t:g}" for t in collection["temperatures"])
    lines = [
        f"Model {collection['model']}, layers {', '.join(map(str, collection['layers']))}, temperature {temperatures}; "
        f"{'' if document['test'] else 'of the development part alone: '}"
        f"{collection['answers']} answers, {collection['tokens']} tokens, {collection['groups']} groups "
        f"(answers to train on {collection['parts']['train']}, to choose on {collection['parts']['val']}, test "
        f"{collection['parts']['test']}). Logit numbers from {collection['logits']}. "
        f"Configuration `{document['hash'][:16]}`.",
        "",
        *_kinds(collection["kinds"]),
    ]
    for name, title in (("development", "Development part, 5 folds by group"), ("test", "Test part")):
        if document[name] is not None:
            lines += ["", f"### {title}", "", *_part(document[name])]
    if document["test"] is None:
        lock = document["lock"]
        lines += ["", "The test part was not looked at." if lock is None else
                  f"The test part was looked at on {lock['created']}; it is not shown here."]  # fmt: skip
    return "\n".join(lines)


def _part(part: dict[str, Any]) -> list[str]:
    lines = [
        *_families(part["families"]), "",
        f"Other populations, AUROC of the same scores · gain over {' · '.join(BASELINES)}:", "",
        *_populations(part["populations"]), "", "Trained on one domain (left), tested on another (right), AUROC:", "",
        *_transfer(part["transfer"]),
    ]  # fmt: skip
    if "left_out_kinds" in part:
        lines += ["", "Tested on one kind, trained on all others, AUROC:", "", *_left_out(part["left_out_kinds"])]
    return [*lines, "", *_online(part["online"])]


def _kinds(kinds: dict[str, dict[str, int]]) -> list[str]:
    columns = ("answers", "right", "wrong", "refused", "off_form", "committed", "with_onset")
    rows = [[kind, *(str(counts.get(column, 0)) for column in columns)] for kind, counts in kinds.items()]
    return _table(["kind", *(column.replace("_", " ") for column in columns)], rows)


def _families(families: Sequence[dict[str, Any]]) -> list[str]:
    """What is ranked in one table, what is decided with it in another: one of twelve columns is not read."""
    ranked, decided = [], []
    for family in families:
        gains = [_gain(family["increments"].get(base)) for base in BASELINES]
        ranked.append([family["family"], _with(family["auroc"], family["auroc_interval"]),
                       _with(family["within_kind_auroc"], family["within_kind_interval"]),
                       _number(family["length_matched_auroc"]), *gains])  # fmt: skip
        numbers = [_number(family[name]) for name in ("auprc", "prr", "tpr_at_1", "tpr_at_5", "ece")]
        decided.append([family["family"], *numbers])
    return [
        *_table(["family", "AUROC", "within-kind AUROC", "length-matched AUROC",
                 *(f"gain over {base}" for base in BASELINES)], ranked),
        "", *_table(["family", "AUPRC", "PRR", "TPR at 1 %", "TPR at 5 %", "ECE"], decided),
    ]  # fmt: skip


def _populations(populations: Sequence[dict[str, Any]]) -> list[str]:
    known = [p for p in populations if p["families"]]
    lines = [
        f"{p['population']}: {p['answers']} answers, {p['wrong']} wrong, too few of a class"
        for p in populations
        if not p["families"]
    ]
    if not known:
        return lines
    rows = []
    for name in known[0]["families"]:
        cells = []
        for population in known:
            found = population["families"][name]
            gains = [_gain(found["increments"][base], short=True) for base in BASELINES if base in found["increments"]]
            cells.append(" · ".join([_number(found["auroc"]), *gains]))
        rows.append([name, *cells])
    heads = [f"{p['population']} ({p['answers']}, {p['wrong']} wrong)" for p in known]
    return _table(["family", *heads], rows) + (["", *lines] if lines else [])


def _transfer(transfer: dict[str, Any]) -> list[str]:
    names = transfer["domains"]
    pairs = [(a, b) for a in names for b in names]
    rows = [[family, *(_number(cells[a][b]) for a, b in pairs)] for family, cells in transfer["auroc"].items()]
    return _table(["family", *(f"{a} → {b}" for a, b in pairs)], rows) if names else ["No domain has enough of both."]


def _left_out(found: dict[str, Any]) -> list[str]:
    kinds = found["kinds"]
    if not kinds:
        return ["No kind has enough of both."]
    rows = [[family, *(_number(cells[kind]) for kind in kinds)] for family, cells in found["auroc"].items()]
    return _table(["family", *kinds], rows)


def _online(found: dict[str, Any]) -> list[str]:
    lines = [
        f"Online, {found['with_onset']} wrong answers with a known onset and {found['right']} right ones. Threshold by "
        "split-conformal for a rate of false alarms; delay in tokens from onset to alarm, median and quartiles; tokens "
        "saved: the share of a wrong answer's that come after its alarm:",
        "",
    ]
    rows = []
    for row in found["alarms"]:
        rate = f"{row['rate']:g} per {row['per']}"
        if "refused" in row:
            rows.append([row["detector"], rate, row["refused"], "", "", "", "", ""])
            continue
        spread = row["delay_quartiles"]
        delay = "" if spread is None else f"{row['delay_median']:g} [{spread[0]:g}, {spread[1]:g}]"
        rows.append([row["detector"], rate, _with(row["recall"], row["recall_interval"]), _number(row["too_early"]),
                     delay, _with(row["tokens_saved"], row["tokens_saved_interval"]),
                     _with(row["false_alarms_per_answer"], row["false_alarms_interval"]),
                     _number(row["alarms_per_1k_clean_tokens"], 1)])  # fmt: skip
    lines += _table(["detector", "allowed", "recall", "too early", "delay", "tokens saved", "false alarms an answer",
                     "alarmed tokens in 1,000 clean"], rows)  # fmt: skip
    lines += ["", "The compass's fixed thresholds: share of answers whose published drift reaches them (it begins at "
              "the tenth token):", ""]  # fmt: skip
    return lines + _table(
        ["threshold", "right", "wrong", "of right with drift", "of wrong with drift"],
        [[f"{row['threshold']:g}", _number(row["right"]), _number(row["wrong"]),
          f"{row['right_with_drift']} of {row['right_answers']}",
          f"{row['wrong_with_drift']} of {row['wrong_answers']}"]
         for row in found["compass_thresholds"]],
    )  # fmt: skip


def _gain(found: dict[str, Any] | None, *, short: bool = False) -> str:
    if found is None:
        return ""
    low, high = found["interval"]
    clear = "*" if low > 0 or high < 0 else ""
    number = f"{_number(found['auroc'], sign=True)}{clear}"
    return number if short else f"{number} [{_number(low, sign=True)}, {_number(high, sign=True)}]"


def _with(value: float, interval: Sequence[float]) -> str:
    return f"{_number(value)} [{_number(interval[0])}, {_number(interval[1])}]"


def _number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    if value is None or not math.isfinite(value):
        return "-"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return lines + [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
