"""The page of `geom report` in a real browser, from file://, with the network off: pointer, keys, themes, numbers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from geomcli import jsonl, report, search
from geomcli.links import links_of
from geomcli.sources import sources_of
from geomcli.spans import read_spans, sentence_spans
from geomcli.trace import Trace
from geomcli.tui.app import DEMO_FILE
from geomcli.zones import classify
from tests.cli.reports import HOSTILE, hostile, long, rich
from tests.library.made_traces import LOCAL, entry, records

SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots"
WIDE = (1440, 900)
QUERIES = (
    "entangle", "This concept", '"."', "zone:semantic_bridge", "@10-12", "@50-", "entropy>0.55", "drift>=0.02",
    "compass:ok the", "drift<1", "local<=0.7 @0-30", "nothing here", "phase:output is", "flag:masked",
)  # fmt: skip


class Page:
    """A report in the browser."""

    def __init__(self, driver: webdriver.Chrome, trace: Trace, path: Path) -> None:
        self.driver, self.trace = driver, trace
        path.write_text(report.render(trace), encoding="utf-8")
        driver.get_log("browser")  # type: ignore[no-untyped-call]
        began = time.monotonic()
        driver.get(path.as_uri())
        self.wait("return document.documentElement.hasAttribute('data-ready')")
        self.seconds = time.monotonic() - began

    def js(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def wait(self, script: str, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self.js(script):
            assert time.monotonic() < deadline, (script, self.complaints())
            time.sleep(0.02)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def texts(self, selector: str) -> list[str]:
        return list(self.js("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector))

    def token(self, index: int) -> WebElement:
        """The element of an output token."""
        return self.find(f'.t[data-p="{self.trace.steps[0]["prompt_len"] + index}"]')

    def positions(self, selector: str) -> set[int]:
        return set(
            self.js("return [...document.querySelectorAll(arguments[0])].map(e => Number(e.dataset.p))", selector)
        )

    def keys(self, *keys: str) -> None:
        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def click(self, element: WebElement) -> None:
        """Click an element in the middle of the window, where the tools and the timeline do not cover it."""
        self.js("arguments[0].scrollIntoView({block: 'center'})", element)
        element.click()

    def hover(self, element: WebElement) -> None:
        self.js("arguments[0].scrollIntoView({block: 'nearest'})", element)
        ActionChains(self.driver).move_to_element(element).perform()

    def complaints(self) -> list[str]:
        """What the browser's console says, violations of the page's policy among it."""
        return [str(e["message"]) for e in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    """Debian's Chromium without a window and without a network."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    assert chromium, "apt-get install chromium chromium-driver"
    assert chromedriver, "apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--lang=en-GB"):
        options.add_argument(argument)
    made = webdriver.Chrome(options=options, service=Service(chromedriver))
    try:
        made.execute_cdp_cmd("Network.enable", {})
        off = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        made.execute_cdp_cmd("Network.emulateNetworkConditions", off)
        made.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "UTC"})
        yield made
    finally:
        made.quit()


Open = Callable[[Trace], Page]


@pytest.fixture
def open_page(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Open]:
    """`open_page(trace)`; whatever a test does with a page, the browser must have nothing to complain of."""
    pages: list[Page] = []

    def opened(trace: Trace) -> Page:
        resize(driver, *WIDE)
        scheme(driver, "light")
        page = Page(driver, trace, tmp_path / f"{len(pages)}.html")
        pages.append(page)
        return page

    yield opened
    for page in pages[-1:]:
        assert page.complaints() == []
        assert (
            page.js("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:')).length")
            == 0
        )
        assert page.js("return window.hacked === undefined")
        page.js("localStorage.clear()")


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def scheme(driver: webdriver.Chrome, name: str, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": name}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def demo(number: int = 0) -> Trace:
    return Trace(jsonl.read_file(DEMO_FILE).traces[number])


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


def test_light_dark_and_what_is_remembered(open_page: Open) -> None:
    page = open_page(demo())
    theme = "return document.documentElement.dataset.theme"
    assert page.js(theme) == "light"
    scheme(page.driver, "dark")
    page.wait("return document.documentElement.dataset.theme === 'dark'")
    dark = page.js("return getComputedStyle(document.body).backgroundColor")
    page.find("#theme").click()
    assert page.js(theme) == "light"
    assert page.js("return getComputedStyle(document.body).backgroundColor") != dark
    page.driver.refresh()
    page.wait("return document.documentElement.hasAttribute('data-ready')")
    assert page.js(theme) == "light", "a choice outlives the page, whatever the system prefers"
    page.keys("t")
    assert page.js(theme) == "dark"


AXE = """
  const [done] = arguments;
  axe.run({rules: {'color-contrast': {enabled: false}}}).then(done);
"""


def test_nothing_stands_against_accessibility(open_page: Open) -> None:
    """axe-core finds nothing in either theme: names, roles, landmarks. It cannot read `color-mix`."""
    page = open_page(rich())
    for steps in ((), ("z",), (Keys.ENTER,), ("t",), ("s",), ("?",)):
        page.keys(*steps)
        page.js(Axe().axe_script)
        result = page.driver.execute_async_script(AXE)
        found = result["violations"]
        assert found == [], [(v["id"], [n["target"] for n in v["nodes"]]) for v in found]
        assert not [v["message"] for v in result["incomplete"] if "error" in v]


# Of every visible text: [contrast with what is painted behind it, how much it needs, its element]. Behind it are the
# background colours of all that it is in, and of gradients, which fill from below, the colour that they begin with.
CONTRAST = r"""
  const parse = text => {
    const found = /(rgba?|color)\(([^)]*)\)/.exec(text);
    if (!found) return null;
    const parts = found[2].replace('srgb', '').split(/[\s,/]+/).filter(Boolean).map(Number);
    const unit = found[1] === 'color' ? 1 : 255;
    return [...parts.slice(0, 3).map(v => v / unit), parts[3] ?? 1];
  };
  const over = (front, back) => back.map((v, i) => i < 3 ? front[i] * front[3] + v * (1 - front[3]) : 1);
  const light = c => c.slice(0, 3).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };
  const behind = element => {
    const chain = [];
    for (let e = element; e; e = e.parentElement) chain.unshift(getComputedStyle(e));
    return chain.reduce((back, style) => {
      const made = over(parse(style.backgroundColor), back);
      const begins = style.backgroundImage.includes('linear-gradient') ? parse(style.backgroundImage) : null;
      return begins ? over(begins, made) : made;
    }, [1, 1, 1, 1]);
  };
  return [...document.querySelectorAll('body *')]
    .filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.checkVisibility()
      && e.getClientRects().length && !e.closest('svg, .unseen, script, noscript'))
    .map(e => {
      const style = getComputedStyle(e);
      const back = behind(e);
      const alpha = Number(style.opacity);
      const fore = parse(style.color);
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const shown = over([...fore.slice(0, 3), fore[3] * alpha], back);
      return [ratio(shown, back), large ? 3 : 4.5, e.outerHTML.slice(0, 120)];
    });
"""


def test_texts_stand_out(open_page: Open) -> None:
    """Contrast as WCAG AA asks for it, in both themes, whatever is lit or coloured."""
    page = open_page(rich())
    looked_at = 0
    for _ in range(2):
        for keys in (
            ("z",),
            (Keys.HOME, "l", Keys.ENTER),
            ("s",),
            ("s",),
            ("s",),
            ("s", "s", "d", "x"),
            (Keys.ESCAPE, "r"),
        ):
            page.keys(*keys)
            page.js("document.getAnimations().forEach(a => a.finish())")
            texts = page.js(CONTRAST)
            assert [text for text in texts if text[0] < text[1]] == [], keys
            looked_at += len(texts)
        page.keys("r", "t")
    assert looked_at > 1000


def test_colours_of_zones_and_bars_stand_out(open_page: Open) -> None:
    page = open_page(demo())
    ratios = (
        CONTRAST.split("const behind", maxsplit=1)[0]
        + """
      const of = name => { const e = document.createElement('i'); e.style.color = `var(${name})`;
        document.body.append(e);
        const found = parse(getComputedStyle(e).color); e.remove(); return found; };
      return ['--z0', '--z1', '--z2', '--z3', '--z4', '--link', '--lit', '--reader', '--focus', '--warn', '--halt']
        .map(name => ratio(of(name), of('--back')));
    """
    )
    for _ in range(2):
        assert min(page.js(ratios)) >= 3, "as WCAG asks of what is no text"
        page.keys("t")


def test_on_paper_and_on_a_phone(open_page: Open) -> None:
    page = open_page(demo())
    page.token(20).click()
    scheme(page.driver, "dark", media="print")
    assert not page.find("#query").is_displayed()
    assert page.find("#lens table.links").is_displayed()
    assert page.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    scheme(page.driver, "light")
    resize(page.driver, 390, 800)
    assert page.js("return document.documentElement.scrollWidth <= 390"), "nothing sticks out to the side"
    assert page.find("#lens table.links").is_displayed()


def test_pictures(open_page: Open) -> None:
    """What the documentation shows. GEOM_WRITE_SCREENSHOTS=1 keeps the pictures."""
    page = open_page(demo())
    page.token(20).click()
    page.hover(page.find("h1"))
    light = page.driver.get_screenshot_as_png()
    page = open_page(demo(1))
    page.keys("t")
    page.click(page.all("table.matrix button")[0])
    page.js("scrollTo(0, 0)")
    dark = page.driver.get_screenshot_as_png()
    for name, picture in (("report-light.png", light), ("report-dark.png", dark)):
        assert len(picture) > 50_000, "more than an empty page"
        if os.environ.get("GEOM_WRITE_SCREENSHOTS"):
            (SCREENSHOTS / name).write_bytes(picture)
        assert (SCREENSHOTS / name).is_file()
