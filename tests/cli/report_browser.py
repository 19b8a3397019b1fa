"""A page of `geom report` in a browser, as the tests of it read and use it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.remote.webelement import WebElement

from geomcli import jsonl, report
from geomcli.trace import Trace
from geomcli.tui.app import DEMO_FILE

WIDE = (1440, 900)


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


Open = Callable[[Trace], Page]


def resize(driver: webdriver.Chrome, width: int, height: int) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def scheme(driver: webdriver.Chrome, name: str, media: str = "") -> None:
    features = [{"name": "prefers-color-scheme", "value": name}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def demo(number: int = 0) -> Trace:
    return Trace(jsonl.read_file(DEMO_FILE).traces[number])
