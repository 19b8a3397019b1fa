"""The page of `geom report` in a real browser, from file://, with the network off: pointer, keys, search, numbers."""

from __future__ import annotations

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

from geomcli import search
from geomcli.links import links_of
from geomcli.sources import sources_of
from geomcli.spans import read_spans, sentence_spans
from geomcli.trace import Trace
from geomcli.zones import classify
from tests.cli.report_browser import Open, Page, demo
from tests.cli.reports import HOSTILE, hostile, long, rich
from tests.library.made_traces import LOCAL, entry, records

QUERIES = (
    "entangle", "This concept", '"."', "zone:semantic_bridge", "@10-12", "@50-", "entropy>0.55", "drift>=0.02",
    "compass:ok the", "drift<1", "local<=0.7 @0-30", "nothing here", "phase:output is", "flag:masked",
)  # fmt: skip


def shown(value: float, digits: int = 2) -> str:
    text = f"{value:.{digits}f}"
    return text.removeprefix("0") if abs(value) < 1 else text


def expected(trace: Trace, index: int, layer: int | None = None, *, sinks: bool = False) -> list[tuple[str, str]]:
    """(position, probability) as the lens writes the links of a token."""
    links = links_of(trace.steps[index], layer)
    return [(str(k.position), shown(k.probability, 3)) for k in links if sinks or k.position >= 4]


def lens_links(page: Page) -> list[tuple[str, str]]:
    rows = page.js(
        "return [...document.querySelectorAll('table.links tbody tr')].map(r => "
        "[r.cells[0].textContent, r.querySelector('b').textContent])"
    )
    return [(position, p) for position, p in rows]


def test_the_conversation_is_the_trace(open_page: Open) -> None:
    page = open_page(demo(1))
    assert page.text("h1") == "Write a haiku about the moon."
    prompt_len = page.trace.steps[0]["prompt_len"]
    pieces = page.js("return [...document.querySelectorAll('.t')].map(e => [Number(e.dataset.p), e.textContent])")
    texts = [*page.trace.steps[0]["prompt_tokens"], *(t["text"] for t in page.trace.tokens)]
    assert [p for p, _ in pieces] == list(range(prompt_len + len(page.trace.tokens)))
    assert [t for _, t in pieces] == texts
    assert page.texts(".turn:not(.template) > h2") == ["user 1", "assistant", "user 2", "answer"]
    assert "smollm2" in page.text("#head")
    assert "20261126" in page.text("#head")
    assert "28" in page.text(".tiles li b")
    assert page.texts("#legend .sample") == ["syntax floor", "semantic bridge"]
    for step in page.trace.steps:
        zone = ["syntax_floor", "semantic_bridge"].index(step["zone"])
        assert f"z{zone}" in str(page.token(step["tokenIndex"]).get_attribute("class")).split()
    style = "return getComputedStyle(arguments[0]).textDecorationStyle"
    styles = {page.js(style, e) for e in page.all(".t.z0, .t.z1")}
    assert styles == {"solid", "double"}, "a zone is told by more than its colour"


def test_pointing_at_a_token_shows_what_it_looked_at(open_page: Open) -> None:
    page = open_page(demo())
    page.hover(page.token(20))
    links = [link for link in links_of(page.trace.steps[20]) if link.position >= 4]
    assert page.positions(".t.read") == {link.position for link in links}
    strengths = {
        int(p): float(s)
        for p, s in page.js(
            "return [...document.querySelectorAll('.t.read')].map(e => [e.dataset.p, e.style.getPropertyValue('--s')])"
        )
    }
    by_strength = sorted(strengths, key=lambda p: -strengths[p])
    assert by_strength == [link.position for link in links]
    assert strengths[links[0].position] == 1
    assert page.find("#tip").is_displayed()
    assert page.text("#tip").startswith('#20 ","')
    assert shown(links[0].probability) in page.text("#tip")
    box = "const b = document.getElementById('conversation').getBoundingClientRect(); return [b.width, b.height]"
    size = page.js(box)
    page.hover(page.token(8))
    assert page.js(box) == size, "nothing moves under the pointer"
    assert page.positions(".t.read") == {k.position for k in links_of(page.trace.steps[8]) if k.position >= 4}
    page.hover(page.find('.t[data-p="26"]'))
    readers = {37 + s["tokenIndex"] for s in page.trace.steps if 26 in {k.position for k in links_of(s)}}
    assert page.positions(".t.reader") == readers
    page.hover(page.find("h1"))
    assert page.positions(".t.read, .t.reader") == set()
    assert not page.find("#tip").is_displayed()


def test_a_click_keeps_a_token_in_the_lens(open_page: Open) -> None:
    page = open_page(demo())
    assert "Point at a token" in page.text("#lens")
    page.token(20).click()
    assert page.text("#lens-title") == '#20 ","'
    assert lens_links(page) == expected(page.trace, 20)
    assert "top 7 cover .78 of the attention; 1 sink hidden, .36" in page.text("#lens")
    step = page.trace.steps[20]
    decision = classify(step["fingerprint"], step["ripple"])
    cells = page.texts(".meters .num")
    assert cells[::2] == [shown(e.value or 0) for e in decision.evidence]
    assert cells[1::2] == [("+" if (e.margin or 0) >= 0 else "") + shown(e.margin or 0).replace("-0.", "-.")
                           for e in decision.evidence]  # fmt: skip
    assert page.texts(".meters .decides") == ["local"]
    assert "drift .014 (" in page.text(".signal")
    assert "sinks hold .36" in page.text(".signal")
    assert len(page.all(".signal svg .bar-fill")) == 16
    assert "most, 42 %" in str(page.find(".signal svg[role=img]").get_attribute("aria-label"))
    share = page.js("return document.querySelector('table.links tbody tr').lastChild.textContent")
    assert share == shown(links_of(step)[1].share)
    for layer in (10, 18):
        page.find(f'#lens [role=radio][data-value="{layer}"]').click()
        assert lens_links(page) == expected(page.trace, 20, layer)
    page.keys("x")
    assert lens_links(page) == expected(page.trace, 20, 18, sinks=True)
    page.keys("x", "d")
    row = page.texts("table.links tbody tr:first-child td")
    link = next(k for k in links_of(step, 18) if k.position >= 4)
    assert row[2:4] == [shown(link.content or 0), f"+{shown(link.position_score or 0)}"]
    page.find("table.links .word").click()
    assert page.text("#lens-title") == f'#{link.position - 37} "{page.trace.tokens[link.position - 37]["text"]}"'
    page.find('[aria-label="Back"]').click()
    assert page.text("#lens-title") == '#20 ","'
    page.find('[aria-label="Close"]').click()
    assert "Point at a token" in page.text("#lens")


def test_everything_by_keys(open_page: Open) -> None:
    page = open_page(demo())
    reached = page.js("return document.querySelectorAll('.t[tabindex=\"0\"]').length")
    assert reached == 1, "one token is in the order of Tab"
    page.token(0).send_keys(Keys.ARROW_RIGHT)
    assert page.js("return document.activeElement.dataset.p") == "38"
    assert page.js("return document.activeElement.getAttribute('role')") == "button"
    assert "syntax floor" in str(page.driver.switch_to.active_element.get_attribute("aria-label"))
    page.keys("l", "l", Keys.ENTER)
    assert page.text("#lens-title").startswith("#3")
    assert page.text("#said").startswith("In the lens: token 3,")
    page.keys(Keys.ARROW_LEFT)
    assert page.text("#lens-title").startswith("#2"), "the lens follows while it is open"
    page.keys("g")
    strongest = next(k.position for k in links_of(page.trace.steps[2]) if k.position >= 4)
    assert page.js("return document.querySelector('.pinned').dataset.p") == str(strongest)
    page.keys("b")
    assert page.text("#lens-title").startswith("#2")
    page.keys(Keys.ESCAPE)
    assert "Point at a token" in page.text("#lens")
    page.keys(Keys.END)
    assert page.js("return document.activeElement.dataset.p") == "88"
    page.keys(Keys.ARROW_UP)
    top = "return arguments[0].getBoundingClientRect().top"
    assert page.js(top, page.driver.switch_to.active_element) < page.js(top, page.token(51))
    page.keys(Keys.HOME)
    assert page.js("return document.activeElement.dataset.p") == "37"
    overlays = []
    for _ in range(5):
        page.keys("s")
        overlays.append(page.js("return document.body.dataset.overlay"))
    assert overlays == ["entropy", "drift", "received", "off", "zone"]
    page.keys("?")
    assert page.find("#help").is_displayed()
    assert len(page.all("#help dt")) == len(page.all("#help dd")) > 12
    page.keys(Keys.ESCAPE)
    assert not page.find("#help").is_displayed()
    page.keys("+")
    page.keys(Keys.ENTER)
    assert "layer 10" in page.text("#lens")


def test_overlays_carry_the_values(open_page: Open) -> None:
    page = open_page(demo())
    values = "return [...document.querySelectorAll('.answer .t')].map(e => e.style.getPropertyValue('--v'))"
    page.keys("s")
    assert page.js(values) == [f"{s['fingerprint'][3]:.2f}" for s in page.trace.steps]
    page.keys("s")
    assert [v == "" for v in page.js(values)] == [s["drift"] is None for s in page.trace.steps]
    page.keys("s")
    got = [0.0] * 89
    for step in page.trace.steps:
        for link in links_of(step):
            if link.position != step["query_position"]:
                got[link.position] += link.probability
    top = max(got[4:])
    assert [float(v or 0) for v in page.js(values)] == pytest.approx([g / top for g in got[37:]], abs=0.006)
    page.keys("s")
    assert set(page.js(values)) == {""}


def test_search_finds_what_the_library_finds(open_page: Open) -> None:
    page = open_page(demo())
    page.keys("/")
    box = page.find("#query")
    assert page.driver.switch_to.active_element == box
    for query in QUERIES:
        box.clear()
        box.send_keys(query)
        marks = sorted(p - 37 for p in page.positions(".t.found"))
        assert marks == search.find(page.trace, query), query
    box.clear()
    box.send_keys("zone:nowhere")
    assert "syntax_floor" in page.text("#found")
    box.clear()
    box.send_keys("entangle", Keys.ENTER)
    hits = search.find(page.trace, "entangle")
    assert page.text("#found") == f"1 of {len(hits)}"
    box.send_keys(Keys.ENTER)
    assert page.text("#lens-title").startswith(f"#{hits[1]} ")
    box.send_keys(Keys.ESCAPE)
    assert page.positions(".t.found") == set()
    assert page.js("return document.activeElement.classList.contains('t')")


def test_the_timeline_scrubs(open_page: Open) -> None:
    page = open_page(demo())
    track = page.find("#track")
    assert track.get_attribute("role") == "slider"
    width = track.size["width"]
    ActionChains(page.driver).move_to_element_with_offset(track, round(width * (30.5 / 52 - 0.5)), 20).click().perform()
    assert page.text("#lens-title").startswith("#30 ")
    assert track.get_attribute("aria-valuenow") == "30"
    assert "token 30" in str(track.get_attribute("aria-valuetext"))
    page.keys(Keys.ARROW_RIGHT)
    assert track.get_attribute("aria-valuenow") == "31"
    assert len(page.all("#track svg path.curve")) == 1
    ends = page.js("return document.querySelector('#track .now').style.left")
    assert float(ends.removesuffix("%")) == pytest.approx(31.5 / 52 * 100, abs=0.01)


def test_a_sentence_lights_what_it_read(open_page: Open) -> None:
    trace = demo(1)
    page = open_page(trace)
    sources = sources_of(trace)
    readings = read_spans(trace, sentence_spans(trace), sources)
    rows = page.js(
        "return [...document.querySelectorAll('table.matrix tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [row[2:] for row in rows] == [[*(shown(m.mass) for m in r.masses), shown(r.unseen)] for r in readings]
    page.click(page.all("table.matrix button")[1])
    said = {107 + i for i in range(readings[1].start, readings[1].end)}
    assert page.positions(".t.said") == said
    read = {
        s.name
        for s, m in zip(sources, readings[1].masses, strict=True)
        if m.mass > 0 and s.kind not in ("sinks", "answer")
    }
    lit = {p for s in sources if s.name in read for a, b in s.ranges for p in range(a, min(b, 107))}
    assert page.positions(".t.lit") == lit
    assert page.texts("#lens .sources .word")[0] == "answer"
    page.click(page.token(12))
    assert page.positions(".t.lit") == set()
    page.click(page.all("#lens .sources .word")[1])
    name = page.text('#lens .sources .word[aria-pressed="true"]')
    chosen = next(s for s in sources if s.name == name)
    assert page.positions(".t.lit") == {p for a, b in chosen.ranges for p in range(a, b)}


def test_thinking_experts_masks_and_documents(open_page: Open) -> None:
    page = open_page(rich())
    assert page.texts(".turn > h2, .turn > summary") == [
        "chat template5 tokens", "document 1", "document 2", "user", "chat template1 tokens", "thinking5 tokens",
        "answer",
    ]  # fmt: skip
    assert page.all(".thinking .t") == [], "thinking is folded"
    page.keys("z")
    page.wait("return document.querySelectorAll('.thinking .t').length === 5")
    assert len(page.all(".t.masked")) == 2
    page.token(2).click()
    assert "thinking" in page.text("#lens .facts-of-token")
    assert page.texts(".experts tr:first-child td")[:2] == ["layer 7", "4"]
    assert "lookback ratio .60" in page.text(".signal")
    page.token(5).click()
    assert "error" in page.text("#lens")
    assert "Nothing was captured of this token: error." in page.text("#lens")
    assert "1 of 11 tokens have no numbers." in page.text(".notes")
    assert "lookback" in page.text("table.matrix thead")


def test_tokens_that_had_left_the_cache_are_counted(open_page: Open) -> None:
    assert "KV cache" not in open_page(rich()).text(".notes")
    trace = rich()
    trace.steps[-1]["kv"] = {"kept": 8, "freed": 18, "share": 0.307692, "left": [[3, 21]]}
    said = open_page(trace).text(".notes")
    assert "18 of 26 tokens had left the KV cache by the last step, which saw the other 8." in said


def test_hostile_texts_do_nothing(open_page: Open) -> None:
    page = open_page(hostile())
    assert page.texts(".answer .t")[:4] == list(HOSTILE[:4])
    for index in range(len(HOSTILE)):
        page.click(page.token(index))
        page.hover(page.token(index))
    page.js("document.querySelectorAll('details').forEach(d => { d.open = true })")
    page.find("#query").send_keys("<img", Keys.ENTER)
    assert page.positions(".t.found")
    assert page.js("return document.querySelectorAll('img, iframe, a, main svg image').length") == 0
    markup = "try { document.createElement('div').innerHTML = '<b>x</b>'; return 'made'; } catch (e) { return e.name; }"
    assert page.js(markup) == "TypeError", "no string becomes markup"
    picture = (
        "const done = arguments[0], i = new Image(); i.onload = () => done('loaded');"
        "i.onerror = () => done('blocked');"
        "i.src = 'data:image/gif;base64,R0lGODlhAQABAAAAACw=';"
    )
    assert page.driver.execute_async_script(picture) == "blocked"
    said = page.complaints()
    assert said, "the browser reports what the policy stopped"
    assert all("Content Security Policy" in m or "TrustedHTML" in m or "Trusted" in m for m in said), said


@pytest.mark.parametrize(
    ("trace", "said"),
    [
        (Trace(records([entry(n, f" w{n}", LOCAL) for n in range(1, 30)])), "Fingerprints only"),
        (Trace(records([entry(n, "x") for n in range(1, 4)])), "No attention was captured"),
        (Trace(records([entry(1, "x", LOCAL)], end=False)), "cut off"),
        (Trace(records([], messages=[])), ""),
        (Trace(), "cut off"),
    ],
)
def test_traces_with_less_in_them(open_page: Open, trace: Trace, said: str) -> None:
    page = open_page(trace)
    assert said in page.text("#head")
    for element in page.all(".answer .t")[:2]:
        page.click(element)
        page.hover(element)
    page.keys(
        "s",
        "s",
        "x",
        "d",
        "+",
        "-",
        "g",
        "b",
        "z",
        "r",
        "n",
        Keys.ENTER,
        Keys.ARROW_RIGHT,
        Keys.ARROW_DOWN,
        "?",
        Keys.ESCAPE,
    )
    assert not page.positions(".t.read")


def test_ten_thousand_tokens(open_page: Open) -> None:
    page = open_page(long(10_000))
    assert page.seconds < 10
    assert page.js("return document.querySelectorAll('*').length") < 13_000
    slow = page.js(
        """const last = document.querySelector('.t[data-p="10040"]'); const times = {};
        const take = (name, f) => { const began = performance.now(); f(); document.body.getBoundingClientRect();
          times[name] = performance.now() - began; };
        take('first', () => last.click());
        take('pin', () => last.previousElementSibling.click());
        take('hover', () => last.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})));
        take('move', () => last.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})));
        return times"""
    )
    assert slow["first"] < 3000
    assert max(slow["pin"], slow["hover"], slow["move"]) < 1000, slow
