"""`geom report` and the page that it writes, without a browser: what is in it, and what can never be."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import subprocess
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path

import pytest

from geomcli import jsonl, report
from geomcli.links import links_of
from geomcli.report.columns import Columns
from geomcli.schema import Record
from geomcli.sources import sources_of
from geomcli.spans import read_spans, sentence_spans
from geomcli.store import Store
from geomcli.trace import Trace
from geomcli.tui.app import DEMO_FILE
from tests.cli.reports import HOSTILE, column_in, facts_in, hostile, long, rich
from tests.conftest import GEOM
from tests.library.made_traces import LOCAL, entry, records


@pytest.fixture(scope="module")
def demo() -> list[Record]:
    return jsonl.read_file(DEMO_FILE).traces[0]


def geom(
    *arguments: object, env: dict[str, str], cwd: Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    source: dict[str, object] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
    command = [str(GEOM), "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, cwd=cwd, timeout=60, **source)  # type: ignore[call-overload,no-any-return]


class Elements(HTMLParser):
    """(tag, attributes) of a page's elements, and the text of its scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] in ("script", "style"):
            self.texts.append((self.found[-1][0], data))


# --- the command


def test_where_the_page_goes(home: dict[str, str], tmp_path: Path, demo: list[Record]) -> None:
    with Store(Path(home["XDG_DATA_HOME"]) / "geom" / "traces.db") as store:
        trace_id = store.add(demo)
    done = geom(env=home, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    named = tmp_path / f"geom-{trace_id}.html"
    assert done.stderr.startswith(named.name)
    again = geom("last", env=home, cwd=tmp_path)
    assert again.returncode == 2
    assert "is there already" in again.stderr
    assert "--force" in again.stderr
    named.write_text("mine")
    assert geom("last", "--force", env=home, cwd=tmp_path).returncode == 0
    stored = named.read_text(encoding="utf-8")
    piped = geom("-", "-o", "-", env=home, cwd=tmp_path, stdin=jsonl.dump(demo))
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout == stored, "the same page from the store and from a file"
    assert piped.stderr == ""


def test_what_cannot_be(home: dict[str, str], tmp_path: Path) -> None:
    for arguments, code, said in (
        ((DEMO_FILE,), 1, "holds 2 traces"),
        (("last",), 1, "no trace 'last'"),
        ((DEMO_FILE, "--number", 1, "-o", "-", "--open"), 2, "cannot be opened"),
        ((DEMO_FILE, "--number", 1, "-o", "no/such/folder/x.html"), 1, "no/such/folder/x.html"),
        ((DEMO_FILE, "--number", 1, "--source", "x=9:900"), 2, "must lie within"),
    ):
        done = geom(*arguments, env=home, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert said in done.stderr, done.stderr
    assert list(tmp_path.glob("*.html")) == []


def test_open_says_so_when_there_is_no_browser(home: dict[str, str], tmp_path: Path) -> None:
    bare = {k: v for k, v in home.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
    done = geom(DEMO_FILE, "--number", 1, "-o", "a.html", "--open", env=bare, cwd=tmp_path)
    assert done.returncode == 0
    assert "No browser was found" in done.stderr
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    done = geom(DEMO_FILE, "--number", 1, "-o", "b.html", "--open", env={**bare, "BROWSER": str(browser)}, cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "opened").read_text().strip() == (tmp_path / "b.html").as_uri()


def test_the_id_of_a_file_cannot_choose_where_to_write(home: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "odd.jsonl"
    source.write_text(jsonl.dump(records([entry(1, "Hi", LOCAL)], trace_id="../../etc/x <y>")), encoding="utf-8")
    assert geom(source, env=home, cwd=tmp_path).returncode == 0
    assert (tmp_path / "geom-etc-x-y.html").is_file()


# --- the page


def test_every_number_of_the_trace_is_in_the_page(demo: list[Record]) -> None:
    trace = Trace(demo)
    page = report.render(trace)
    facts = facts_in(page)
    assert facts["tokens"] == [t["text"] for t in trace.tokens]
    assert facts["prompt"] == trace.steps[0]["prompt_tokens"]
    assert (facts["layers"], facts["layer"], facts["promptLength"]) == ([10, 18, 26, 29], 29, 37)
    assert [facts["zones"][int(z or 0)]["id"] for z in column_in(page, "zone")] == [s["zone"] for s in trace.steps]
    near = 1 / 65534
    for name, field in (("drift", "drift"), ("confidence", "zone_confidence"), ("sink", "sink_mass")):
        for shown, step in zip(column_in(page, name), trace.steps, strict=True):
            assert (shown is None) == (step[field] is None)
            assert shown is None or abs(shown - step[field]) <= near
    flat = [v for step in trace.steps for v in step["fingerprint"]]
    assert column_in(page, "fp") == pytest.approx(flat, abs=near)
    for layer in facts["layers"]:
        links = [link for step in trace.steps for link in links_of(step, layer)]
        assert column_in(page, f"{layer}/count") == [len(links_of(step, layer)) for step in trace.steps]
        assert column_in(page, f"{layer}/position") == [link.position for link in links]
        assert column_in(page, f"{layer}/p") == pytest.approx([link.probability for link in links], abs=near)
        assert column_in(page, f"{layer}/content") == pytest.approx([link.content for link in links], abs=1e-5)
    sources = sources_of(trace)
    readings = read_spans(trace, sentence_spans(trace), sources, layer=18)
    for row, reading in zip(facts["sentences"]["layers"]["18"], readings, strict=True):
        assert row[3] == pytest.approx([m.mass for m in reading.masses], abs=1e-5)


def test_layers_experts_and_head_statistics() -> None:
    page = report.render(rich())
    facts = facts_in(page)
    assert (facts["layers"], facts["experts"], facts["thinking"]) == ([3, 7], [7], [[0, 5]])
    assert column_in(page, "moe/7/expert")[:2] == [4, 1]
    assert column_in(page, "7/lookback")[:2] == [None, pytest.approx(0.6, abs=1e-4)]
    assert column_in(page, "3/sink")[0] == pytest.approx(0.5, abs=1e-4)
    assert column_in(page, "zone")[5] == 255, "a token whose capture failed has no zone"
    assert [s["name"] for s in facts["sources"]] == ["masked", "sinks", "template", "document 1", "document 2", "user",
                                                    "thinking", "answer"]  # fmt: skip


@pytest.mark.parametrize("made", [rich, hostile, lambda: long(300), lambda: Trace([{"record_type": "header"}]), Trace])
def test_nothing_of_the_page_comes_from_elsewhere_and_nothing_else_runs(made: object) -> None:
    page = report.render(made())  # type: ignore[operator]
    elements = Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 3, "facts, columns and the page's own script"
    assert tags.count("style") == 1
    assert not {"link", "iframe", "object", "embed", "base", "img", "form"} & set(tags)
    for _, attributes in elements.found:
        assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "style")]
    policy = next(a["content"] for t, a in elements.found if t == "meta" and "http-equiv" in a) or ""
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http:" not in policy
    for kind in ("script", "style"):
        text = "".join(t for k, t in elements.texts if k == kind)
        own = re.search(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        assert own
        digest = base64.b64encode(hashlib.sha256(own[1].encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy, text[:80]


def test_hostile_texts_stay_texts() -> None:
    page = report.render(hostile())
    facts = facts_in(page)
    assert facts["tokens"][0] == HOSTILE[0]
    assert facts["tokens"][2] == "{{script}}", "a text is no placeholder"
    assert "window.hacked" not in re.sub(r"<script.*?</script>|<noscript>.*?</noscript>|<title>.*?</title>", "", page,
                                         flags=re.DOTALL)  # fmt: skip
    assert "\u202e" not in page
    assert "\x1b" not in page


def test_values_that_cannot_be_read_are_left_out() -> None:
    trace = rich()
    step = trace.steps[1]
    step["moe"] = {"7": {"experts": ["x"]}, "9": 5}
    step["attention"] = {"layers": {"7": 3, "3": {"fingerprint": "no", "token_positions": "x"}}, "head_stats": 4}
    page = report.render(trace)
    assert column_in(page, "moe/7/count")[:3] == [2, 0, 2]
    assert column_in(page, "3/count")[:3] == [2, 0, 2]
    assert column_in(page, "3/fp")[20] is None


def test_the_text_can_be_read_without_scripts(demo: list[Record]) -> None:
    page = report.render(Trace(demo))
    plain = page.split("<noscript>")[1].split("</noscript>")[0]
    assert "Explain quantum entanglement in two sentences." in plain
    assert "causally linked." in plain


def test_size_of_a_page(demo: list[Record]) -> None:
    trace = long(2000)
    page = report.render(trace)
    raw = len(jsonl.dump(trace.records()))
    assert len(page.encode()) < raw / 4
    assert len(report.render(Trace(demo)).encode()) < 140_000


def test_the_scripts_make_no_markup_from_strings() -> None:
    folder = files("geomcli.report") / "page"
    written = {item.name for item in folder.iterdir()}
    assert written == {*report.SCRIPTS, *report.STYLES, "page.html"}
    for name in report.SCRIPTS:
        text = (folder / name).read_text(encoding="utf-8")
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function",
                     "fetch(", "XMLHttpRequest", "import(", "</script", "WebSocket"):  # fmt: skip
            assert word not in text, (name, word)
        assert "://" not in text.replace("http://www.w3.org/2000/svg", ""), name


def test_columns() -> None:
    columns = Columns()
    columns.add("a", "unit", [0.0, 1.0, None, 0.25, 2.0, -1.0])
    columns.add("b", "u8", [1, 300, 2])
    columns.add("c", "f32", [1.5, None, -2.0])
    assert columns.manifest == {"a": ("unit", 0, 6), "b": ("u8", 12, 3), "c": ("f32", 16, 3)}
    text = f'<script type="application/json" id="facts">{{"columns":{_json(columns)}}}</script>'
    text += f'<script type="text/plain" id="columns">{columns.packed()}</script>'
    assert column_in(text, "a") == [0.0, 1.0, None, pytest.approx(0.25, abs=1e-5), 1.0, 0.0]
    assert column_in(text, "b") == [1, 255, 2]
    back = column_in(text, "c")
    assert back == [1.5, None, -2.0]
    assert not any(v is not None and math.isnan(v) for v in back)


def _json(columns: Columns) -> str:
    import json

    return json.dumps(columns.manifest)
