"""Debian's Chromium without a window, for what geom shows in a browser."""

from __future__ import annotations

import shutil

from selenium import webdriver
from selenium.webdriver.chrome.service import Service


def chromium(*arguments: str) -> webdriver.Chrome:
    """A browser, its console kept; a test that finds none fails and names the packages. The caller quits it."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "apt-get install chromium chromium-driver"
    assert driver, "apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    return webdriver.Chrome(options=options, service=Service(driver))
