"""A folder that is broken says which file and line; reading one changes nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from geomcli.errors import GeomError
from geomcli.evaluation.dataset import load
from geomcli.evaluation.folder import Folder
from tests.evaluation.planted import planted


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return planted(tmp_path / "f", 6)


def test_reading_leaves_the_bytes_and_the_next_answer_cuts_the_broken_line_off(folder: Folder) -> None:
    file = folder.path / "answers.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"number":6,"item":"0","te')
    answers = folder.answers()
    load(folder)
    assert len(answers) == 6
    assert file.read_bytes() == whole + b'{"number":6,"item":"0","te'
    added = msgspec.structs.replace(answers[0], number=6, temperature=1.0)
    folder.add(added, folder.recording(answers[0]))
    assert file.read_bytes() == whole + msgspec.json.encode(added) + b"\n"
    assert folder.answers() == [*answers, added]


def test_a_first_line_that_broke_off_is_cut_off(folder: Folder) -> None:
    first = folder.answers()[0]
    file = folder.path / "answers.jsonl"
    file.write_bytes(b'{"num')
    assert folder.answers() == []
    folder.add(first, folder.recording(first))
    assert file.read_bytes() == msgspec.json.encode(first) + b"\n"


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
        lambda file: file.write_bytes(b""),
        lambda file: file.unlink(),
    ],
    ids=["cut", "empty", "gone"],
)
def test_arrays_that_cannot_be_read_are_named_with_the_line_to_delete(
    folder: Folder, damage: Callable[[Path], object]
) -> None:
    file = folder.path / "arrays" / "000002.npz"
    damage(file)
    with pytest.raises(GeomError) as raised:
        load(folder)
    assert str(file) in raised.value.message
    assert raised.value.mend is not None
    assert '"number":2' in raised.value.mend
    assert b'"number":2,' in (folder.path / "answers.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"number":7,"item":"other","temperature":0,"text":"","tokens":[]}', "no question 'other'"), ("{", "cannot be")],
)
def test_a_line_that_cannot_be_used_is_named(folder: Folder, line: str, said: str) -> None:
    file = folder.path / "answers.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
    with pytest.raises(GeomError, match=f"line 4: .*{said}") as raised:
        load(folder)
    assert str(file) in raised.value.message
    assert "delete the line" in (raised.value.mend or "")
