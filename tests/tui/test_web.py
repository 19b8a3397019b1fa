"""`geom tui --web` in a real browser: it paints, it obeys keys, and nobody else can reach it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium import webdriver

from geomcli.tui import panes
from geomcli.tui.app import DEMO_FILE
from tests.browser import chromium
from tests.conftest import GEOM
from tests.engine.harness import free_port
from tests.tui.terminal import alive

# The terminal of the page draws on a canvas: what it draws is what came through its socket.
RECORD = """
window.received = '';
const Real = window.WebSocket;
window.WebSocket = class extends Real {
  constructor(...given) {
    super(...given);
    const decoder = new TextDecoder();
    this.addEventListener('message', async event => {
      const data = event.data instanceof Blob ? await event.data.arrayBuffer() : event.data;
      window.received += typeof data === 'string' ? data : decoder.decode(data, {stream: true});
    });
  }
};
"""
# How many pixels of a screenshot are not the most frequent colour, and how many colours there are.
COLOURS = """
const [png, done] = arguments;
const image = new Image();
image.onload = () => {
  const canvas = Object.assign(document.createElement('canvas'), {width: image.width, height: image.height});
  const context = canvas.getContext('2d');
  context.drawImage(image, 0, 0);
  const pixels = new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer);
  const counts = new Map();
  for (const pixel of pixels) counts.set(pixel, (counts.get(pixel) || 0) + 1);
  done([pixels.length - Math.max(...counts.values()), counts.size]);
};
image.src = 'data:image/png;base64,' + png;
"""


@pytest.fixture
def server(home: dict[str, str], tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """(URL, process) of `geom tui --demo --web`."""
    port = free_port()
    environment = {**home, "GEOM_DB": str(tmp_path / "traces.db")}
    command = [str(GEOM), "tui", "--demo", "--web", "--port", str(port)]
    with (tmp_path / "web.out").open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            assert process.poll() is None, (tmp_path / "web.out").read_text()
            try:
                httpx.get(url)
                break
            except httpx.HTTPError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield url, process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture
def browser() -> Iterator[webdriver.Chrome]:
    """A browser that keeps what its sockets receive."""
    made = chromium("--window-size=1280,820")
    made.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": RECORD})
    try:
        yield made
    finally:
        made.quit()


def wait_for(browser: webdriver.Chrome, text: str, *, after: int = 0, seconds: float = 30) -> int:
    """Waits until a text was drawn behind the first `after` characters; how many characters came so far."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        received: str = browser.execute_script("return window.received")
        if text in received[after:]:
            return len(received)
        time.sleep(0.1)
    raise AssertionError(f"{text!r} was not drawn; the last of what was: {received[-800:]!r}")


def opening(port: int, origin: str | None) -> bytes:
    """What a page of `origin` sends to open the socket of the app."""
    extra = f"Origin: {origin}\r\n" if origin else ""
    return (
        f"GET /ws?width=80&height=24 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {'A' * 22}==\r\nSec-WebSocket-Version: 13\r\n{extra}\r\n"
    ).encode()


def picture(browser: webdriver.Chrome) -> tuple[int, int]:
    """(pixels that are not background, colours) of what is on screen."""
    found: Any = browser.execute_async_script(COLOURS, browser.get_screenshot_as_base64())
    return found[0], found[1]


def test_a_browser_shows_the_app_and_its_keys_work(
    server: tuple[str, subprocess.Popen[str]], browser: webdriver.Chrome
) -> None:
    url, process = server
    browser.get(url)
    wait_for(browser, "heads 9/9")
    time.sleep(1)
    drawn, colours = picture(browser)
    assert drawn > 20_000
    assert colours > 50

    page = browser.find_element("css selector", ".xterm-helper-textarea")
    for number, mode in [*panes.offered()[1:], panes.offered()[0]]:
        seen = len(browser.execute_script("return window.received"))
        page.send_keys(f"{number}?")
        wait_for(browser, f"Keys in {mode.capitalize()}", after=seen)
        # Not with Escape: the next key could arrive with it in one packet, as that key with Alt.
        page.send_keys("q")

    listed = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
    )
    apps = {int(pid) for pid in listed.stdout.split()}
    assert apps
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    deadline = time.monotonic() + 10
    while alive(apps) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert alive(apps) == set()


def test_only_this_machine_and_only_its_own_page_get_in(server: tuple[str, subprocess.Popen[str]]) -> None:
    url, _ = server
    port = int(url.rpartition(":")[2])
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port:04X}")
    ]
    assert listening == [f"0100007F:{port:04X}"]
    assert "http://127.0.0.1" in httpx.get(url).headers["content-security-policy"]
    for origin, status in ((None, b"403"), ("http://evil.example", b"403"), (url, b"101")):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(opening(port, origin))
            assert connection.recv(64).split()[1] == status


def test_a_port_that_is_taken_is_a_sentence(home: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [GEOM, "tui", "--web", "--port", str(port)], capture_output=True, text=True, env=home, timeout=60
        )
    assert done.returncode != 0
    assert "already in use" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_browser_gets_what_was_asked_for_and_keys_are_on_no_command_line(
    home: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    environment = {**home, "GEOM_DB": str(tmp_path / "traces.db")}
    command = [str(GEOM), "tui", "--web", "--port", str(port), "--api-key", "k-own", "--attention-key=k-attention"]
    (tmp_path / "-x.jsonl").write_text(DEMO_FILE.read_text())
    command += ["--pane", "inspect", "--no-save", "--", "-x.jsonl"]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        connection = None
        while connection is None:
            assert time.monotonic() < deadline
            with contextlib.suppress(OSError):
                connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            time.sleep(0.1)
        with connection:
            connection.sendall(opening(port, f"http://127.0.0.1:{port}"))
            drawn = b""
            while b"-x.jsonl" not in drawn:
                assert time.monotonic() < deadline
                drawn += connection.recv(65536)
            listed = subprocess.run(
                ["ps", "--ppid", str(process.pid), "-o", "pid="], capture_output=True, text=True, check=True
            )
            (child,) = listed.stdout.split()
            line = Path(f"/proc/{child}/cmdline").read_bytes()
            assert b" tui --pane=inspect --no-save -- -x.jsonl" in line
            assert b"k-own" not in line
            assert b"k-attention" not in line
            own = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            assert {b"GEOM_API_KEY=k-own", b"GEOM_ATTENTION_KEY=k-attention"} <= set(own)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
