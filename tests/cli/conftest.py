"""A browser for the pages that geom writes: no window, no network, one time zone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from geomcli.trace import Trace
from tests.browser import chromium
from tests.cli.report_browser import WIDE, Open, Page, resize, scheme


@pytest.fixture(scope="module")
def driver() -> Iterator[webdriver.Chrome]:
    """Debian's Chromium without a window and without a network."""
    made = chromium("--hide-scrollbars", "--lang=en-GB")
    try:
        made.execute_cdp_cmd("Network.enable", {})
        off = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        made.execute_cdp_cmd("Network.emulateNetworkConditions", off)
        made.execute_cdp_cmd("Emulation.setTimezoneOverride", {"timezoneId": "UTC"})
        yield made
    finally:
        made.quit()


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
