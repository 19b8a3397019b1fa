"""How the page of `geom report` looks in a real browser: themes, contrast, accessibility, paper, pictures."""

from __future__ import annotations

import os
from pathlib import Path

from axe_core_python.selenium import Axe
from selenium.webdriver.common.keys import Keys

from tests.cli.report_browser import Open, demo, resize, scheme
from tests.cli.reports import rich

SCREENSHOTS = Path(__file__).parents[2] / "docs" / "screenshots"


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
